//! The same image in a virtual machine of its own: another kernel, the same commands.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::Containerd,
    ctr::{Container, Ctr},
    images::Image,
    runtime::{Home, Runtime},
};

use crate::{heads, step};

/// The one that stays.
const CELL: &str = "cell";

/// Runs all, each line printed when it is done.
pub(crate) fn show(containerd: &Containerd, home: &Home) -> Result<()> {
    let doctor = home.runv(&["doctor"])?;
    let accelerator = doctor.lines().next().context("runv doctor said nothing")?;
    println!(
        "\nshim-runv: a machine for each container, with a kernel of Debian's; {accelerator}\n"
    );
    heads();
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let host = host.trim();
    let container =
        |id| -> Container<'_> { Ctr::of(containerd).container(id, Image::Debian, Runtime::Runv) };
    // The first of its image makes the disk that all others of that image have.
    for ran in [
        "ctr run --rm IMAGE first uname -r   (makes its disk)",
        "ctr run --rm IMAGE second uname -r",
    ] {
        step(ran, || {
            let release = container("one").output("uname -r")?;
            ensure!(release.trim() == home.release && release.trim() != host);
            Ok(release.trim().to_owned())
        })?;
    }
    println!("{:<58} {host:<26}", "uname -r");
    step("ctr run -d IMAGE cell sleep 1000", || {
        container(CELL).detach(&["sleep", "1000"])?;
        Ok("started".to_owned())
    })?;
    let cell = Ctr::of(containerd).task(CELL);
    step(
        "ctr task exec cell sh -c 'echo pid 1 is $(cat ...)'",
        || {
            let said = cell.output("echo pid 1 is $(cat /proc/1/comm)")?;
            ensure!(said.trim() == "pid 1 is sleep", "{said}");
            Ok(said.trim().to_owned())
        },
    )?;
    println!("\n{}", home.runv(&["ps"])?);
    step("ctr task kill -s SIGKILL cell; ctr task rm cell", || {
        Ok(format!("exit code {}", cell.kill_and_remove()?))
    })
}
