//! Clients that race for one container, and shims that die amid execs: all is told right, no call
//! hangs, and nothing is left.
//!
//! `POUCH_SEED` repeats a run of the random test.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::Task,
    images::Image,
    process::Running,
    random::Random,
    runtime::Runtime,
    wait::{Deadline, SOON, Sources, for_end_of, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runlxc;

/// Starts a program of the client for each list of words; all run at the same time.
fn start_all<'a>(
    bench: &Bench<'_>,
    calls: impl Iterator<Item = Vec<&'a str>>,
) -> Result<Vec<Running>> {
    calls.map(|words| bench.ctr().start(&words)).collect()
}

/// Each may succeed or fail, but ends.
fn finish_all(running: Vec<Running>) -> Result<usize> {
    let mut succeeded = 0;
    for running in running {
        succeeded += usize::from(running.finish(SOON)?.code() == 0);
    }
    Ok(succeeded)
}

#[test]
fn clients_that_race_for_one_container_leave_nothing() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let ids = ["race-0", "race-1", "race-2"];
        for id in ids {
            bench.containerd.expect_container(id)?;
            race(bench, id)?;
        }
        Ok(())
    });
}

fn race(bench: &Bench<'_>, id: &str) -> Result<()> {
    let image = bench.image.reference();
    let create = [
        "containers",
        "create",
        "--runtime",
        RUNTIME.name(),
        &image,
        id,
    ];
    let create: Vec<&str> = create.into_iter().chain(["sleep", "600"]).collect();
    bench.ctr().call(&create)?.success()?;
    let start = ["tasks", "start", "--detach", id].to_vec();
    let started = finish_all(start_all(bench, std::iter::repeat_n(start, 4))?)?;
    ensure!(started == 1, "{started} of 4 clients have started it");
    let exec_ids: Vec<String> = (0..8)
        .map(|number| format!("exec-{}", number / 2))
        .collect();
    let fifos = bench.containerd.fifos().display().to_string();
    let exec = |exec_id| {
        [
            "tasks",
            "exec",
            "--fifo-dir",
            &fifos,
            "--exec-id",
            exec_id,
            id,
            "true",
        ]
        .to_vec()
    };
    // Each exec's id twice: one of the two gets it.
    let mut running = start_all(bench, exec_ids.iter().map(|exec_id| exec(exec_id)))?;
    let kill = ["tasks", "kill", "--signal", "SIGKILL", id].to_vec();
    running.extend(start_all(bench, std::iter::repeat_n(kill, 3))?);
    let remove = ["tasks", "rm", "--force", id].to_vec();
    running.extend(start_all(bench, std::iter::repeat_n(remove, 3))?);
    finish_all(running)?;
    remove_what_is_left(bench, &bench.ctr().task(id))
}

/// By the usual calls, which must work whatever has happened.
fn remove_what_is_left(bench: &Bench<'_>, task: &Task<'_>) -> Result<()> {
    if task.status()?.is_some() {
        let words = ["tasks", "rm", "--force", &task.id];
        bench.ctr().call(&words)?.success()?;
    }
    task.remove_container()
}

#[test]
fn fifty_execs_run_at_the_same_time_and_each_exit_is_told() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        // Stock runc on 1.6 loses one now and then: its client waits for ever.
        let task = bench.container("fifty").detach(&["sleep", "600"])?;
        let start = |number| task.start_exec(&[], &["sh", "-c", &format!("exit {number}")]);
        let running = (0..50).map(start).collect::<Result<Vec<_>>>()?;
        for (code, running) in (0..).zip(running) {
            running.finish(SOON)?.with_code(code)?;
        }
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn a_shim_that_dies_amid_execs_takes_all_of_it_away() {
    let seed = std::env::var("POUCH_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.map_or_else(Random::fresh_seed, Ok).unwrap();
    println!("repeated by POUCH_SEED={seed}");
    check(RUNTIME, &[Image::Busybox], |bench| {
        let mut random = Random::new(seed);
        for number in 0..5 {
            let moment = Duration::from_micros(random.below(150_000));
            die_amid_execs(bench, &format!("amid-{number}"), moment)
                .with_context(|| format!("killed after {moment:?}"))?;
        }
        Ok(())
    });
}

fn die_amid_execs(bench: &Bench<'_>, id: &str, moment: Duration) -> Result<()> {
    let container = bench.ctr().container(id, bench.image, RUNTIME);
    let task = container.detach(&["sleep", "600"])?;
    let init = task.pid()?;
    let shim = bench.containerd.shim_of(id)?.context("there is no shim")?;
    let start = |_| task.start_exec(&[], &["sh", "-c", "sleep 0.05"]);
    let running = (0..10).map(start).collect::<Result<Vec<_>>>()?;
    // The moment is random; there is nothing to wait for.
    Deadline::after(moment).poll(&mut [])?;
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    finish_all(running)?;
    // containerd sees the connection end, and has the shim's `delete` clean up.
    for_end_of(init, SOON)?;
    until("the task is gone or stopped", SOON, Sources::none(), || {
        let status = task.status()?;
        let over = status.is_none_or(|status| status.state == "STOPPED");
        Ok(over.then_some(()))
    })?;
    remove_what_is_left(bench, &task)
}
