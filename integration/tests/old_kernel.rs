//! runlxc on stock containerd 1.6 as on Linux 2.6.32: no setns, no subreapers, no no_new_privs, no filters;
//! and the command on every kernel profile.
//!
//! containerd and all it starts run below a filter that answers as that kernel's table of system calls
//! does. What the filter cannot show is left to unit tests and to a real kernel.

#![expect(clippy::panic, reason = "a test's own functions")]

use std::{ffi::OsString, fs};

use anyhow::{Context, Result, ensure};
use integration::{
    config::Config,
    containerd::Containerd,
    ctr::{Container, Ctr},
    images::Image,
    process::{Finished, Running, command},
    profile::PROFILES,
    runtime::{Runtime, built},
    terminal::Size,
    versions::{Availability, Version},
    wait::{SOON, Sources, for_end_of, until},
};
use nix::sys::signal::Signal;

/// The oldest profile of the harness.
const KERNEL: &str = "2.6.32";

/// What lets containers run without what that kernel lacks; containerd passes it on to the shim.
const HARDENING_OPTIONAL: &str = "RUNLXC_HARDENING_OPTIONAL";

const SIZE: Size = Size {
    rows: 37,
    columns: 111,
};

/// Runs `life` with a containerd on that kernel; nothing may be left at the end.
fn on_old_kernel(environment: &[(&str, &str)], life: impl Fn(Ctr<'_>, &Containerd) -> Result<()>) {
    let run = || -> Result<()> {
        Runtime::Runlxc
            .binaries()
            .context("the runtime under test is missing")?;
        let Availability::Ready(installed) = Version::V1_6.install()? else {
            anyhow::bail!("containerd 1.6 is not to be had");
        };
        let mut config = Config::with_images(&[Image::Busybox]);
        config.launcher = launcher(KERNEL);
        let environment = environment.iter();
        config.environment = environment
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let containerd = Containerd::start(&installed, &config)?;
        life(Ctr::of(&containerd), &containerd).with_context(|| containerd.log_tail())?;
        containerd.finish()
    };
    run().unwrap_or_else(|error| panic!("{error:#}"));
}

fn launcher(kernel: &str) -> Vec<OsString> {
    vec![env!("CARGO_BIN_EXE_kernel-profile").into(), kernel.into()]
}

fn container<'a>(ctr: Ctr<'a>, id: &str) -> Container<'a> {
    ctr.container(id, Image::Busybox, Runtime::Runlxc)
        .snapshotter("native")
}

fn ensure_code(expected: i32, code: i32) -> Result<()> {
    ensure!(code == expected, "expected {expected}, got {code}");
    Ok(())
}

#[test]
fn containers_live_as_anywhere() {
    on_old_kernel(&[(HARDENING_OPTIONAL, "true")], |ctr, containerd| {
        one_shots(ctr).context("one-shots")?;
        execs(ctr, containerd).context("execs")?;
        terminals(ctr).context("terminals")?;
        signals(ctr).context("signals")?;
        pauses(ctr).context("pauses")?;
        crashes(ctr, containerd).context("crashes")
    });
}

/// Exit codes of programs that end by themselves, by a signal, before they begin.
fn one_shots(ctr: Ctr<'_>) -> Result<()> {
    let out = container(ctr, "out").output("uname -r; echo $$")?;
    ensure!(out.starts_with("2.6.") && out.ends_with("\n2\n"), "{out:?}");
    container(ctr, "code").shell("exit 7")?.with_code(7)?;
    container(ctr, "signal")
        .shell("kill -KILL $$")?
        .with_code(137)?;
    let absent = container(ctr, "absent").run(&["/no/such/program"])?;
    ensure!(absent.code() != 0, "it ran: {absent}");
    ensure!(absent.stderr().contains("/no/such/program"), "{absent}");
    let task = container(ctr, "self").detach(&["sh", "-c", "exit 42"])?;
    ensure_code(42, task.remove()?)?;
    let task =
        container(ctr, "attach").detach(&["sh", "-c", "read line; echo \"got $line\"; exit 5"])?;
    let attached = task.attach("typed\n")?.finish(SOON)?;
    ensure!(attached.stdout() == "got typed\n", "{attached}");
    attached.with_code(5)?;
    task.remove_container()
}

/// What runlxc does through pid 1 here: many execs at once, as users, in the cgroup, told by pid.
fn execs(ctr: Ctr<'_>, containerd: &Containerd) -> Result<()> {
    let task = container(ctr, "execs").detach(&["sleep", "600"])?;
    let said = task.output("id -u; cat /proc/1/comm")?;
    ensure!(said == "0\nrunlxc-init\n", "{said:?}");
    let user = task.exec_with(
        &["--user", "12:34", "--cwd", "/tmp"],
        &["sh", "-c", "id -u; id -g; pwd"],
    )?;
    ensure!(user.success()?.stdout() == "12\n34\n/tmp\n", "another user");
    task.exec_many_at_once()?;
    task.exec(&["sh", "-c", "kill -TERM $$"])?.with_code(143)?;
    let refused = task.exec(&["/no/such/program"])?;
    ensure!(
        refused.code() != 0 && refused.stderr().contains("/no/such/program"),
        "{refused}"
    );

    let exec = task.start_exec(&[], &["sh", "-c", "echo $$ > /tmp/pid; exec sleep 601"])?;
    task.exec(&["sh", "-c", "until [ -s /tmp/pid ]; do sleep 0.01; done"])?
        .success()?;
    // runlxc-init, the program, the exec: by their numbers on the host, in the container's cgroups.
    let processes = task.processes()?;
    ensure!(processes.len() == 3, "expected three, got {processes:?}");
    let command_line = |pid: &&i32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line == "sleep\x00601\x00")
    };
    let pid = processes
        .iter()
        .find(command_line)
        .context("the exec is not there")?;
    let limits = task.metrics()?.to_string();
    ensure!(limits.contains("memory"), "{limits}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL)?;
    exec.finish(SOON)?.with_code(137)?;

    // The end of the container is that of its execs.
    let exec = task.start_exec(&[], &["sh", "-c", ": > /tmp/runs; exec sleep 602"])?;
    task.exec(&["sh", "-c", "until [ -e /tmp/runs ]; do sleep 0.01; done"])?
        .success()?;
    ensure_code(137, task.kill_and_remove()?)?;
    ensure!(exec.finish(SOON)?.code() != 0, "the exec ended well");
    ensure!(
        containerd.shim_of("execs")?.is_none(),
        "its shim is still there"
    );
    Ok(())
}

fn terminals(ctr: Ctr<'_>) -> Result<()> {
    let script = "until stty size | grep -x '37 111'; do sleep 0.02; done; read line; echo \"<$line>\"; exit 3";
    let mut terminal = container(ctr, "tty").terminal(SIZE, &["sh", "-c", script])?;
    terminal.expect("37 111", SOON)?;
    terminal.type_text("typed\n")?;
    terminal.expect("<typed>", SOON)?;
    ensure_code(3, terminal.finish(SOON)?.0)?;

    let task = container(ctr, "exec-tty").detach(&["sleep", "600"])?;
    let script = "trap 'echo interrupted; exit 5' INT; until stty size | grep -x '37 111'; do \
                  sleep 0.02; done; tty; while :; do sleep 1; done";
    let mut terminal = task.exec_in_terminal(SIZE, &["sh", "-c", script])?;
    terminal.expect("37 111", SOON)?;
    terminal.expect("/dev/pts/", SOON)?;
    terminal.type_text("\x03")?;
    terminal.expect("interrupted", SOON)?;
    ensure_code(5, terminal.finish(SOON)?.0)?;
    ensure_code(137, task.kill_and_remove()?)
}

fn signals(ctr: Ctr<'_>) -> Result<()> {
    let script = "trap 'exit 9' TERM; : > /tmp/ready; while :; do sleep 0.05; done";
    let task = container(ctr, "signals").detach(&["sh", "-c", script])?;
    task.exec(&["sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done"])?
        .success()?;
    task.kill(Signal::SIGTERM)?;
    ensure_code(9, task.remove()?)?;
    let task = container(ctr, "all").detach(&["sh", "-c", "(sleep 603 &); exec sleep 600"])?;
    let processes = task.processes()?;
    task.kill_all(Signal::SIGKILL)?;
    ensure_code(137, task.remove()?)?;
    processes
        .into_iter()
        .try_for_each(|pid| for_end_of(pid, SOON))
}

fn pauses(ctr: Ctr<'_>) -> Result<()> {
    let task = container(ctr, "pause").detach(&["sleep", "600"])?;
    task.pause()?;
    let state = task.status()?.context("it is gone")?.state;
    ensure!(state == "PAUSED", "it is {state}");
    ensure!(
        task.exec(&["true"])?.code() != 0,
        "an exec in a paused container"
    );
    task.resume()?;
    task.exec(&["true"])?.success()?;
    task.pause()?;
    ensure_code(137, task.kill_and_remove()?)
}

/// Nothing is left of a container whose shim, or whose containerd, is killed.
fn crashes(ctr: Ctr<'_>, containerd: &Containerd) -> Result<()> {
    let task = container(ctr, "restart").detach(&["sleep", "600"])?;
    containerd.kill_and_restart()?;
    task.exec(&["sh", "-c", "exit 6"])?.with_code(6)?;
    let shim = containerd.shim_of("restart")?.context("there is no shim")?;
    let init = task.pid()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), Signal::SIGKILL)?;
    for_end_of(init, SOON)?;
    until(
        "containerd has removed the task",
        SOON,
        Sources::none(),
        || Ok(task.status()?.is_none().then_some(())),
    )?;
    task.remove_container()
}

#[test]
fn what_the_kernel_lacks_is_refused_by_name_unless_the_operator_allows_it() {
    on_old_kernel(&[], |ctr, _containerd| {
        let refused = container(ctr, "refused").run(&["true"])?;
        ensure!(refused.code() != 0, "it ran: {refused}");
        for words in [
            "process.noNewPrivileges",
            "Linux has from 3.5",
            "HardeningOptional",
        ] {
            ensure!(refused.stderr().contains(words), "no {words:?}: {refused}");
        }
        container(ctr, "plain")
            .flags(&["--allow-new-privs"])
            .shell("exit 4")?
            .with_code(4)
            .map(drop)
    });
}

/// The command in a bundle of its own.
struct Bundle {
    directory: tempfile::TempDir,
    config: serde_json::Value,
}

impl Bundle {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let bin = directory.path().join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        for name in ["sh", "sleep"] {
            fs::copy("/bin/busybox", bin.join(name))?;
        }
        let mut this = Self {
            directory,
            config: serde_json::Value::Null,
        };
        this.runlxc(KERNEL, &["spec"])?.success()?;
        let text = fs::read(this.directory.path().join("config.json"))?;
        this.config = serde_json::from_slice(&text)?;
        this.config["process"]["terminal"] = false.into();
        Ok(this)
    }

    /// What its containers run from now on.
    fn program(&mut self, script: &str) -> Result<()> {
        self.config["process"]["args"] = serde_json::json!(["sh", "-c", script]);
        let path = self.directory.path().join("config.json");
        Ok(fs::write(path, self.config.to_string())?)
    }

    fn runlxc(&self, kernel: &str, words: &[&str]) -> Result<Finished> {
        self.runlxc_by(launcher(kernel), words)
    }

    fn runlxc_by(&self, launcher: Vec<OsString>, words: &[&str]) -> Result<Finished> {
        let mut before = launcher.into_iter();
        let mut runlxc = command(before.next().context("a launcher")?);
        runlxc
            .args(before)
            .arg(built("runlxc")?)
            .arg("--root")
            .arg(self.directory.path().join("state"))
            .args(words)
            .current_dir(self.directory.path());
        Running::start(&mut runlxc)?.finish(SOON)
    }
}

/// Sleeps, and does not keep the pipes of whoever waits for the command.
const SLEEP: &str = "exec sleep 600 >&- 2>&-";

#[test]
fn the_command_tells_what_was_left_out() -> Result<()> {
    let mut bundle = Bundle::new()?;
    let id = format!("old-kernel-{}", std::process::id());
    bundle.program("exit 8")?;
    let refused = bundle.runlxc(KERNEL, &["run", &id])?.with_code(1)?;
    ensure!(
        refused.stderr().contains("process.noNewPrivileges"),
        "{refused}"
    );
    bundle.program(SLEEP)?;
    let words = ["--hardening-optional", "run", "--detach", &id];
    let created = bundle.runlxc(KERNEL, &words)?.success()?;
    ensure!(
        created
            .stderr()
            .contains("process.noNewPrivileges is left out"),
        "{created}"
    );
    let state = bundle.runlxc(KERNEL, &["state", &id])?.success()?.stdout();
    ensure!(
        state.contains("\"org.pouch.left-out\": \"process.noNewPrivileges\""),
        "{state}"
    );
    // Of descriptors that are not open there are none to preserve.
    let preserving = ["exec", "--preserve-fds", "1", &id, "sh", "-c", ":"];
    bundle.runlxc(KERNEL, &preserving)?.success()?;
    let with_one = ["sh", "-c", "exec 3</dev/null; exec \"$@\"", "sh"].map(OsString::from);
    let with_one = with_one.into_iter().chain(launcher(KERNEL)).collect();
    let refused = bundle.runlxc_by(with_one, &preserving)?.with_code(255)?;
    ensure!(
        refused
            .stderr()
            .contains("an exec with further descriptors"),
        "{refused}"
    );
    bundle
        .runlxc(KERNEL, &["delete", "--force", &id])?
        .success()
        .map(drop)
}

#[test]
fn the_command_runs_and_execs_on_every_kernel() -> Result<()> {
    let mut bundle = Bundle::new()?;
    for profile in PROFILES {
        let kernel = profile.name;
        let lives = |bundle: &mut Bundle| -> Result<()> {
            let id = format!("kernel-{}-{}", kernel.replace('.', "-"), std::process::id());
            bundle.program("exit 8")?;
            let words = ["--hardening-optional", "run", &id];
            bundle.runlxc(kernel, &words)?.with_code(8)?;
            bundle.program(SLEEP)?;
            let words = ["--hardening-optional", "run", "--detach", &id];
            bundle.runlxc(kernel, &words)?.success()?;
            let words = ["exec", &id, "sh", "-c", "echo in; exit 6"];
            let said = bundle.runlxc(kernel, &words)?.with_code(6)?;
            ensure!(said.stdout() == "in\n", "{said}");
            let features = bundle.runlxc(kernel, &["features"])?.success()?.stdout();
            let way = if kernel == KERNEL { "agent" } else { "setns" };
            ensure!(
                features.contains(&format!("\"org.pouch.exec\": \"{way}\"")),
                "{features}"
            );
            bundle
                .runlxc(kernel, &["delete", "--force", &id])?
                .success()
                .map(drop)
        };
        lives(&mut bundle).with_context(|| format!("kernel {kernel}"))?;
    }
    Ok(())
}
