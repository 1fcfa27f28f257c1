//! The operator's own programs in containers that run in virtual machines, through their shims and past containerd.

use std::{collections::BTreeSet, ffi::OsString, fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::Task,
    images::Image,
    process::{Running, command},
    runtime::{Runtime, built},
    terminal::{FIRST, Terminal, USES},
    versions::Version,
    wait::{SOON, Sources, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runv;

/// `runv` with these words.
fn runv(words: &[&str]) -> Result<Command> {
    let mut runv = command(built("runv")?);
    runv.args(words);
    Ok(runv)
}

/// A program of the operator's in a container.
fn exec(task: &Task<'_>, program: &[&str]) -> Result<Command> {
    runv(&[&["exec", &task.id], program].concat())
}

#[test]
fn an_operator_runs_programs_in_a_container_and_leaves_nothing_there() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = bench.container("operated").detach(&["sleep", "1000"])?;
        streams(&task)?;
        // Which containerd it is makes no difference: it is not asked.
        if bench.version() == Version::V2_4 {
            signals(&task)?;
            terminal(&task)?;
            is_not_held_up(&task)?;
            is_killed(bench, &task)?;
        }
        states(bench, &task)
    });
}

/// Input, both outputs, much of them, exit codes, and what cannot be run.
fn streams(task: &Task<'_>) -> Result<()> {
    let script = "cat; echo oops >&2; exit 7";
    let mut program = exec(task, &["sh", "-c", script])?;
    let ended = Running::start_with_text(&mut program, "typed\n")?.finish(SOON)?;
    ensure!(
        ended.stdout() == "typed\n" && ended.stderr() == "oops\n",
        "{ended}"
    );
    ended.with_code(7)?;
    // More than pipes hold, and none is lost at the end.
    let mut much = exec(task, &["sh", "-c", "head -c 3000000 /dev/zero; echo end"])?;
    let ended = Running::start(&mut much)?.finish(SOON)?;
    ensure!(
        ended.stdout().len() == 3_000_004,
        "{} bytes",
        ended.stdout().len()
    );
    ensure!(ended.stdout().ends_with("end\n"));
    let mut missing = exec(task, &["/no/such/program", "--its-own-option"])?;
    let ended = Running::start(&mut missing)?.finish(SOON)?;
    ensure!(ended.stderr().lines().count() == 1, "{ended}");
    ended.failing_with("/no/such/program")?;
    let mut nobody = runv(&["exec", "nobody", "true"])?;
    let ended = Running::start(&mut nobody)?.finish(SOON)?;
    ended.failing_with("there is no container nobody")?;
    // The shim would open what has its pid on the host.
    let program = exec(task, &["true"])?;
    let mut elsewhere = command("unshare");
    elsewhere
        .args(["--pid", "--fork"])
        .arg(program.get_program());
    elsewhere.args(program.get_args());
    let ended = Running::start(&mut elsewhere)?.finish(SOON)?;
    ended.failing_with("is in another pid namespace")?;
    Ok(())
}

/// The caller's are the program's.
fn signals(task: &Task<'_>) -> Result<()> {
    let script = "trap 'echo told; exit 5' USR1; echo ready; while :; do sleep 0.1; done";
    let mut running = Running::start(&mut exec(task, &["sh", "-c", script])?)?;
    running.wait_for_output(SOON, |text| text.contains("ready").then_some(()))?;
    running.signal(Signal::SIGUSR1)?;
    let ended = running.finish(SOON)?.with_code(5)?;
    ensure!(ended.stdout() == "ready\ntold\n", "{ended}");
    let mut running = Running::start(&mut exec(
        task,
        &["sh", "-c", "echo ready; exec sleep 1000"],
    )?)?;
    running.wait_for_output(SOON, |text| text.contains("ready").then_some(()))?;
    running.signal(Signal::SIGTERM)?;
    running.finish(SOON)?.with_code(128 + 15)?;
    // Also when nothing is copied of it any more, and others came after it.
    let script = "exec >&- 2>&- </dev/null; touch /tmp/closed; exec sleep 1000";
    let running = Running::start(&mut exec(task, &["sh", "-c", script])?)?;
    until("it has closed its output", SOON, Sources::none(), || {
        let seen = task.exec(&["test", "-e", "/tmp/closed"])?;
        Ok((seen.code() == 0).then_some(()))
    })?;
    task.exec(&["true"])?.success()?;
    running.signal(Signal::SIGTERM)?;
    running.finish(SOON)?.with_code(128 + 15)?;
    Ok(())
}

fn terminal(task: &Task<'_>) -> Result<()> {
    let script = format!("{USES}; trap 'exit 6' INT; echo ready; while :; do sleep 0.1; done");
    let program = runv(&["exec", "--tty", &task.id, "sh", "-c", &script])?;
    let mut terminal = Terminal::start(&program, FIRST)?;
    terminal.is_a_programs()?;
    terminal.expect("ready", SOON)?;
    // The key, not a signal to the command: its terminal is raw.
    terminal.type_text("\x03")?;
    let (code, shown) = terminal.finish(SOON)?;
    ensure!(code == 6, "{code}: {shown:?}");
    Ok(())
}

/// By a program whose output nobody takes any more, and by one that leaves its output to another.
fn is_not_held_up(task: &Task<'_>) -> Result<()> {
    let script = "{ \"$@\"; echo $? >&2; } | head -n 1";
    let program = exec(task, &["yes"])?;
    let mut piped = command("sh");
    piped.args(["-c", script, "sh"]).arg(program.get_program());
    piped.args(program.get_args());
    let ended = Running::start(&mut piped)?.finish(SOON)?.success()?;
    let (stdout, stderr) = (ended.stdout(), ended.stderr());
    ensure!(stdout == "y\n" && stderr == "141\n", "{ended}");
    let script = "sleep 1000 & echo left; exit 3";
    let ended = Running::start(&mut exec(task, &["sh", "-c", script])?)?.finish(SOON)?;
    ensure!(ended.with_code(3)?.stdout() == "left\n");
    Ok(())
}

/// All in the directories of a container on the host.
fn files(bench: &Bench<'_>, task: &Task<'_>) -> Result<BTreeSet<OsString>> {
    let state = Path::new("/run/containerd/runv").join(&bench.containerd.namespace);
    let mut names = BTreeSet::new();
    for directory in [bench.containerd.bundle(&task.id), state.join(&task.id)] {
        for entry in fs::read_dir(directory)? {
            names.insert(entry?.path().into_os_string());
        }
    }
    Ok(names)
}

/// A command that is killed leaves no file of the host, and its program runs on.
fn is_killed(bench: &Bench<'_>, task: &Task<'_>) -> Result<()> {
    let before = files(bench, task)?;
    let script = "echo $$ > /tmp/left; echo ready; exec sleep 1000";
    let mut running = Running::start(&mut exec(task, &["sh", "-c", script])?)?;
    running.wait_for_output(SOON, |text| text.contains("ready").then_some(()))?;
    let pid = running.pid();
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    running.finish(SOON)?;
    let after = files(bench, task)?;
    ensure!(after == before, "{before:?}, and then {after:?}");
    task.exec(&["sh", "-c", "kill $(cat /tmp/left)"])?
        .success()?;
    Ok(())
}

/// What the shim says, and without one what is on disk.
fn states(bench: &Bench<'_>, task: &Task<'_>) -> Result<()> {
    let state = || -> Result<serde_json::Value> {
        let told = Running::start(&mut runv(&["state", &task.id])?)?.finish(SOON)?;
        Ok(serde_json::from_str(&told.success()?.stdout())?)
    };
    let running = state()?;
    ensure!(
        running["status"] == "running" && running["id"] == *task.id,
        "{running}"
    );
    ensure!(running["pid"] == task.pid()?, "{running}");
    task.pause()?;
    let paused = state()?;
    ensure!(paused["status"] == "paused", "{paused}");
    task.resume()?;
    let bundle = bench.containerd.bundle(&task.id);
    ensure!(
        running["bundle"] == *bundle.display().to_string(),
        "{running}"
    );
    // Nobody serves it under another address.
    let address = bundle.join("address");
    let before = fs::read(&address)?;
    fs::write(&address, "unix:///run/nobody")?;
    let away = state();
    let mut program = exec(task, &["true"])?;
    let refused = Running::start(&mut program)?.finish(SOON)?;
    fs::write(&address, before)?;
    ensure!(away?["status"] == "stopped");
    refused.failing_with("no shim serves container")?;
    ensure!(state()?["status"] == "running");
    task.kill_and_remove()?;
    Ok(())
}
