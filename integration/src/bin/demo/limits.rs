//! Limits on what a container writes: met, shown, raised while it runs, and kept through the daemon's death.

use std::path::Path;

use anyhow::{Result, ensure};
use integration::{
    containerd::Containerd,
    ctr::{Ctr, Task},
    images::Image,
    process::{command, output_of},
    runtime::{Runtime, built},
    snapshotter::Snapshotter,
    wait::SOON,
};

use crate::{heads, step};

/// containerd's own label for the size of what a container writes, in bytes.
pub(crate) const SIZE: &str = "containerd.io/snapshot/max-size";

/// The container.
const WEB: &str = "web";

/// Every back end can make this hold; the smallest image of xfs has 300 MiB.
const MEBIBYTES: u64 = 512;

/// Runs all, each line printed when it is done.
pub(crate) fn show(containerd: &Containerd, snapshotter: &Snapshotter) -> Result<()> {
    let probed = ours("probe", "--root", &snapshotter.root())?;
    println!("\nsnapshotter-quota beside it; what can hold a limit on this disk:\n\n{probed}");
    heads();
    let ctr = Ctr::of(containerd);
    let bytes = MEBIBYTES << 20;
    step(
        "ctr run -d --snapshotter quota ... max-size=512 MiB web",
        || {
            ctr.container(WEB, Image::Debian, Runtime::Runlxc)
                .snapshotter("quota")
                .snapshotter_label(SIZE, &bytes.to_string())
                .detach(&["sleep", "1000"])?;
            Ok("started".to_owned())
        },
    )?;
    let web = ctr.task(WEB);
    step("in it: df -h /", || {
        let shown = web.output("df -h --output=size / | tail -n 1")?;
        Ok(format!("size {}", shown.trim()))
    })?;
    step("in it: write 600 MiB", || write(&web, 600, "ended with 1"))?;
    step("ctr snapshots label web max-size=1 GiB", || {
        let label = format!("{SIZE}={}", bytes * 2);
        ctr.snapshots("quota", &["label", WEB, &label])?.success()?;
        Ok("done".to_owned())
    })?;
    step("in it: write 600 MiB", || write(&web, 600, "ended with 0"))?;
    step("kill -9 of the daemon; it starts again", || {
        snapshotter.kill_and_restart()?;
        Ok("the container runs on".to_owned())
    })?;
    step("in it: write 1200 MiB", || {
        write(&web, 1200, "ended with 1")
    })?;
    println!("\n{}", ours("ls", "--address", &snapshotter.address())?);
    step("ctr task kill -s SIGKILL web; ctr task rm web", || {
        Ok(format!("exit code {}", web.kill_and_remove()?))
    })?;
    ctr.collect_garbage()
}

/// `snapshotter-quota` of this daemon, for a person to type.
pub(crate) fn command_line(snapshotter: &Snapshotter) -> String {
    let program = built("snapshotter-quota").unwrap_or_else(|_| "snapshotter-quota".into());
    let address = snapshotter.address();
    format!("{} --address {}", program.display(), address.display())
}

/// What `snapshotter-quota` prints when it is given that option.
fn ours(word: &str, option: &str, path: &Path) -> Result<String> {
    let mut ours = command(built("snapshotter-quota")?);
    output_of(ours.args([word, option]).arg(path), SOON)
}

/// What dd says of it, which has to end as expected.
fn write(task: &Task<'_>, mebibytes: u64, expected: &str) -> Result<String> {
    let dd = format!("dd if=/dev/zero of=/file bs=1M count={mebibytes} 2>&1; echo ended with $?");
    let said = task.output(&dd)?;
    ensure!(
        said.contains(expected),
        "it did not end as expected: {said}"
    );
    let refused = said.lines().find(|line| line.starts_with("dd:"));
    let why = refused.and_then(|line| line.rsplit(": ").next());
    Ok(why.unwrap_or("written").to_owned())
}
