//! Signals reach the process they are meant for.

use anyhow::ensure;
use integration::{check::check, images::Image};
use nix::sys::signal::Signal;

use crate::RUNTIME;

#[test]
fn a_killed_container_exits_with_137() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let task = bench.container("killed").detach(&["sleep", "600"])?;
        let code = task.kill_and_remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        Ok(())
    });
}

#[test]
fn a_foreground_run_ends_with_137_when_its_container_is_killed() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let container = bench.container("foreground");
        let mut running = container.start(&["sh", "-c", "echo up; exec sleep 600"])?;
        running.wait_for_output(integration::wait::SOON, |text| {
            text.contains("up").then_some(())
        })?;
        let id = format!("foreground-{}", bench.image.key().replace('.', "-"));
        bench.ctr().task(&id).kill(Signal::SIGKILL)?;
        running.finish(integration::wait::SOON)?.with_code(137)?;
        Ok(())
    });
}

#[test]
fn init_handles_the_signals_it_has_handlers_for() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        for (signal, word) in [(Signal::SIGTERM, "TERM"), (Signal::SIGHUP, "HUP")] {
            let script =
                format!("trap 'exit 7' {word}; : >/tmp/ready; while :; do sleep 1 & wait; done");
            let container = bench.container(&format!("handler-{}", word.to_lowercase()));
            let task = container.detach(&["sh", "-c", &script])?;
            task.exec(&["sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done"])?
                .success()?;
            task.kill(signal)?;
            let code = task.remove()?;
            ensure!(code == 7, "{word}: expected 7, got {code}");
        }
        Ok(())
    });
}

#[test]
fn an_exec_is_killed_alone_and_exits_with_143() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let task = bench.container("exec-killed").detach(&["sleep", "600"])?;
        let mut exec = task.start_exec(
            &["--exec-id", "victim"],
            &["sh", "-c", "echo up; exec sleep 600"],
        )?;
        exec.wait_for_output(integration::wait::SOON, |text| {
            text.contains("up").then_some(())
        })?;
        let id = task.id.clone();
        let words = [
            "tasks",
            "kill",
            "--exec-id",
            "victim",
            "--signal",
            "SIGTERM",
            &id,
        ];
        bench.ctr().call(&words)?.success()?;
        exec.finish(integration::wait::SOON)?.with_code(143)?;
        let status = task.status()?.map(|status| status.state);
        ensure!(
            status.as_deref() == Some("RUNNING"),
            "the container is {status:?}"
        );
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn killing_all_ends_what_init_left_running() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = bench.container("all").detach(&[
            "sh",
            "-c",
            "sleep 601 & sleep 602 & : >/tmp/ready; wait",
        ])?;
        task.exec(&["sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done"])?
            .success()?;
        let processes = task.processes()?;
        ensure!(
            processes.len() == 3,
            "expected three processes, got {processes:?}"
        );
        task.kill_all(Signal::SIGKILL)?;
        let code = task.remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        for pid in processes {
            integration::wait::for_end_of(pid, integration::wait::SOON)?;
        }
        Ok(())
    });
}
