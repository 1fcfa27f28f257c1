//! Tasks in the background: attaching, pausing, several at once.

use anyhow::{Context, bail, ensure};
use integration::{
    census::descriptors,
    check::check,
    images::Image,
    runtime::Runtime,
    wait::{SOON, Sources, until},
};
use nix::sys::signal::Signal;

use crate::RUNTIME;

#[test]
fn attaching_gives_input_takes_output_and_ends_with_the_code() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let script = "read line; echo \"got $line\"; exit 5";
        // `ctr` itself loses the output of about one short program in a hundred, with any runtime.
        for attempt in 0..3 {
            let container = bench.container(&format!("attach-{attempt}"));
            let task = container.detach(&["sh", "-c", script])?;
            let attached = task.attach("typed\n")?.finish(SOON)?.with_code(5)?;
            task.remove_container()?;
            if !attached.stdout().is_empty() {
                ensure!(attached.stdout() == "got typed\n", "{attached}");
                return Ok(());
            }
        }
        bail!("three times it printed nothing")
    });
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    check(RUNTIME, &[Image::Busybox, Image::Debian], |bench| {
        let task = bench.container("pause").detach(&["sleep", "600"])?;
        task.pause()?;
        let state = task.status()?.context("it is gone")?.state;
        ensure!(state == "PAUSED", "it is {state}");
        let refused = task.exec(&["true"])?;
        ensure!(
            refused.code() != 0,
            "an exec in a paused container went through: {refused}"
        );
        task.resume()?;
        let state = task.status()?.context("it is gone")?.state;
        ensure!(state == "RUNNING", "it is {state}");
        task.exec(&["true"])?.success()?;
        let code = task.kill_and_remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        Ok(())
    });
}

#[test]
fn containers_side_by_side_do_not_mix() {
    check(RUNTIME, &Image::STANDARD, |bench| {
        let names = ["left", "middle", "right"];
        let mut tasks = Vec::new();
        for name in names {
            let script = format!("echo {name} >/name; exec sleep 600");
            tasks.push((name, bench.container(name).detach(&["sh", "-c", &script])?));
        }
        for (name, task) in &tasks {
            let seen = task.output("until [ -s /name ]; do sleep 0.01; done; cat /name")?;
            ensure!(seen.trim() == *name, "{name} reads {seen:?}");
        }
        tasks[0].1.kill_and_remove()?;
        for (name, task) in &tasks[1..] {
            task.exec(&["true"])?
                .success()
                .with_context(|| format!("{name} is gone"))?;
            task.kill_and_remove()?;
        }
        Ok(())
    });
}

#[test]
fn many_clients_start_containers_at_the_same_time() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let mut running = Vec::new();
        for number in 0..8 {
            let container = bench.container(&format!("many-{number}"));
            running.push((
                number,
                container.start(&["sh", "-c", &format!("exit {number}")])?,
            ));
        }
        for (number, running) in running {
            running.finish(SOON)?.with_code(number)?;
        }
        Ok(())
    });
}

#[test]
fn many_execs_run_at_the_same_time_in_one_container() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = bench.container("execs").detach(&["sleep", "600"])?;
        task.exec_many_at_once()?;
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn orphans_in_the_container_are_reaped_with_it() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let script = "(sleep 601 &) ; (sleep 602 &) ; : >/tmp/ready; exec sleep 600";
        let task = bench.container("orphans").detach(&["sh", "-c", script])?;
        task.exec(&["sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done"])?
            .success()?;
        let processes = task.processes()?;
        ensure!(processes.len() == 3, "expected three, got {processes:?}");
        task.kill(Signal::SIGKILL)?;
        let code = task.remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        for pid in processes {
            integration::wait::for_end_of(pid, SOON)?;
        }
        Ok(())
    });
}

/// On a busy machine the shim of containerd 1.7 keeps the standard input of a quick exec now and then.
fn is_kept_by_stock(kind: &str) -> bool {
    RUNTIME == Runtime::Runc && kind.contains("/exec-") && kind.ends_with("-stdin (deleted)")
}

#[test]
fn execs_leave_no_descriptor_open() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = bench.container("descriptors").detach(&["sleep", "600"])?;
        let shim = bench
            .containerd
            .shim_of(&task.id)?
            .context("there is no shim")?;
        // What a shim opens once, at its first execs or by chance of timing, is no leak.
        for _ in 0..10 {
            task.exec(&["true"])?.success()?;
        }
        let before = descriptors(shim)?;
        for _ in 0..20 {
            task.exec(&["true"])?.success()?;
        }
        let mut grown = Vec::new();
        until(
            "the shim has as many descriptors as before",
            SOON,
            Sources::none(),
            || {
                grown = descriptors(shim)?
                    .into_iter()
                    .filter(|(kind, count)| count > before.get(kind).unwrap_or(&0))
                    .filter(|(kind, _)| !is_kept_by_stock(kind))
                    .collect();
                Ok(grown.is_empty().then_some(()))
            },
        )
        .with_context(|| format!("{grown:?} are more than in {before:?}"))?;
        task.kill_and_remove()?;
        Ok(())
    });
}
