//! What is installed is replaced under containers that run: a shim goes on with the stub it knows.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    images::Image,
    runtime::Runtime,
};

const RUNTIME: Runtime = Runtime::Runlxc;

/// The shim and its stub as an installation has them: files of their own beside each other.
fn install(folder: &Path) -> Result<()> {
    for binary in RUNTIME.binaries()? {
        let name = binary.file_name().context("a binary has a name")?;
        let installed = folder.join(name);
        fs::remove_file(&installed)?;
        fs::copy(&binary, &installed)?;
    }
    Ok(())
}

/// As install(1) and packages do it: the new file takes the place of the old one, which whoever
/// has it open keeps.
fn replace_stub(folder: &Path) -> Result<()> {
    let new = folder.join("new");
    fs::copy("/bin/false", &new)?;
    Ok(fs::rename(new, folder.join("runlxc-init"))?)
}

#[test]
fn containers_go_on_when_the_stub_is_replaced() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let folder = bench.containerd.path();
        install(&folder)?;
        let pod = ["--annotation", "io.kubernetes.cri.sandbox-id=upgraded"];
        let first = bench.container("upgraded").flags(&pod);
        let first = first.detach(&["sleep", "600"])?;
        replace_stub(&folder)?;
        first.exec(&["sh", "-c", "exit 5"])?.with_code(5)?;
        // By the same shim.
        let second = bench.container("of-the-same-pod").flags(&pod);
        let second = second.detach(&["sleep", "600"])?;
        let open = second.exec(&["ls", "/proc/1/fd"])?.success()?;
        ensure!(open.stdout().trim() == "0\n1\n2", "it has {open:?}");
        second.exec(&["sh", "-c", "exit 6"])?.with_code(6)?;
        second.kill_and_remove()?;
        first.kill_and_remove()?;
        install(&folder)?;
        is_fresh(bench)
    });
}

/// A shim that starts later takes what is there then.
fn is_fresh(bench: &Bench<'_>) -> Result<()> {
    let task = bench.container("after").detach(&["sleep", "600"])?;
    task.exec(&["sh", "-c", "exit 7"])?.with_code(7)?;
    task.kill_and_remove()?;
    Ok(())
}
