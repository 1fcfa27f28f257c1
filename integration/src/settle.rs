//! After somebody was killed: what containerd says becomes what is, and then the usual calls remove the container.

use anyhow::{Result, bail, ensure};

use crate::{
    check::Bench,
    ctr::Task,
    wait::{SOON, Sources, process_end, until},
};

/// Waits for it and removes the container, whose exit code, if it has ended, is one of these; one that runs runs well.
pub fn settle(bench: &Bench<'_>, id: &str, codes: &[i32]) -> Result<()> {
    let task = bench.ctr().task(id);
    let status = until(
        "what containerd says is what is",
        SOON,
        Sources::none(),
        || {
            let Some(status) = task.status()? else {
                return Ok(Some(None));
            };
            let is_alive = status.pid > 0 && process_end(status.pid)?.is_some();
            let is_said_alive = ["RUNNING", "CREATED"].contains(&status.state.as_str());
            Ok((is_alive == is_said_alive).then_some(Some(status)))
        },
    )?;
    match status {
        Some(status) if status.state == "RUNNING" => {
            task.exec(&["sh", "-c", "exit 6"])?.with_code(6)?;
            let code = task.kill_and_remove()?;
            ensure!(code == 137, "it was killed and exited with {code}");
        }
        Some(status) if status.state == "STOPPED" => {
            let code = task.remove()?;
            ensure!(
                codes.contains(&code),
                "it exited with {code}, not {codes:?}"
            );
        }
        Some(_) => {
            bench
                .ctr()
                .call(&["tasks", "rm", "--force", id])?
                .success()?;
            task.remove_container()?;
        }
        None => remove_container(&task, bench, id)?,
    }
    Ok(())
}

fn remove_container(task: &Task<'_>, bench: &Bench<'_>, id: &str) -> Result<()> {
    let listed = bench
        .ctr()
        .call(&["containers", "ls", "-q"])?
        .success()?
        .stdout();
    if listed.lines().any(|line| line == id) {
        task.remove_container()?;
    }
    let snapshots = bench.ctr().call(&["snapshots", "ls"])?.success()?.stdout();
    if snapshots
        .lines()
        .any(|line| line.split_whitespace().next() == Some(id))
    {
        // A client that was interrupted between the two leaves it; no runtime knows of it.
        bench.ctr().call(&["snapshots", "rm", id])?.success()?;
    }
    if bench.ctr().tasks()?.iter().any(|(name, _)| name == id) {
        bail!("the task came back");
    }
    Ok(())
}
