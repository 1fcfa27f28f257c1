//! containerd goes away and comes back: containers do not notice.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::Task,
    images::Image,
    runtime::Runtime,
    versions::Version,
    wait::{SOON, Sources, until},
};

use crate::RUNTIME;

/// The task is what it was, can be executed in, and tells the truth about its end.
fn is_well(task: &Task<'_>, pid: i32) -> Result<()> {
    let status = task.status()?.context("the task is gone")?;
    ensure!(
        status.state == "RUNNING" && status.pid == pid,
        "it is {status:?}, was {pid}"
    );
    task.exec(&["sh", "-c", "exit 6"])?.with_code(6)?;
    let code = task.kill_and_remove()?;
    ensure!(code == 137, "expected 137, got {code}");
    Ok(())
}

#[test]
fn a_container_survives_a_restart_of_containerd() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let task = bench.container("restart").detach(&["sleep", "600"])?;
        let pid = task.pid()?;
        bench.containerd.restart()?;
        is_well(&task, pid)
    });
}

#[test]
fn a_container_survives_a_kill_of_containerd() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let task = bench.container("killed-daemon").detach(&["sleep", "600"])?;
        let pid = task.pid()?;
        bench.containerd.kill_and_restart()?;
        is_well(&task, pid)
    });
}

#[test]
fn an_end_while_containerd_is_away_is_told_when_it_is_back() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let go = bench.containerd.work().join("go");
        let done = bench.containerd.work().join("done");
        let script = "until [ -e /work/go ]; do sleep 0.01; done; : >/work/done; exit 44";
        let task = bench
            .container("away")
            .bound(&bench.containerd.work(), "/work")
            .detach(&["sh", "-c", script])?;
        let pid = task.pid()?;
        bench.containerd.kill9()?;
        fs::write(&go, "")?;
        until(
            "the container has ended",
            SOON,
            Sources::none().process(pid)?,
            || Ok((done.exists() && integration::wait::process_end(pid)?.is_none()).then_some(())),
        )?;
        bench.containerd.start_again()?;
        let code = code_after_restart(bench, &task)?;
        ensure!(
            code.is_none_or(|code| code == 44),
            "expected 44, got {code:?}"
        );
        Ok(())
    });
}

#[test]
fn a_stopped_task_keeps_its_code_over_restarts() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = bench
            .container("stopped")
            .detach(&["sh", "-c", "exit 45"])?;
        task.wait()?;
        bench.containerd.restart()?;
        bench.containerd.kill_and_restart()?;
        let code = code_after_restart(bench, &task)?;
        ensure!(
            code.is_none_or(|code| code == 45),
            "expected 45, got {code:?}"
        );
        Ok(())
    });
}

/// From 1.7 on containerd deletes a shim that names no process when it asks for them at its start,
/// and stock runc's names none for a stopped task. There the code is lost, and only there.
fn code_after_restart(bench: &Bench<'_>, task: &Task<'_>) -> Result<Option<i32>> {
    let is_lost = bench.runtime == Runtime::Runc && bench.version() != Version::V1_6;
    if is_lost && task.status()?.is_none() {
        bench
            .ctr()
            .call(&["containers", "rm", &task.id])?
            .success()?;
        return Ok(None);
    }
    task.remove().map(Some)
}
