//! Rich containers: an image without an init gets one.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::{Container, Task},
    image_init,
    images::Image,
    runtime::Runtime,
    terminal::Size,
    wait::{SOON, Sources, for_end_of, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runlxc;

const MODE: [&str; 2] = ["--annotation", "org.pouch.rich.mode=dumb-init"];

const SIZE: Size = Size {
    rows: 37,
    columns: 111,
};

/// Says that it is ready, then waits for ever for a signal with a trap.
const UNTIL_TRAPPED: &str = ": >/tmp/ready; while :; do sleep 1 & wait; done";

fn rich<'a>(bench: &Bench<'a>, name: &str) -> Container<'a> {
    bench.container(name).flags(&MODE)
}

/// A rich container in the background whose program has said that it is ready.
fn ready<'a>(container: &Container<'a>, script: &str) -> Result<Task<'a>> {
    let task = container.detach(&["sh", "-c", script])?;
    task.exec(&["sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done"])?
        .success()?;
    Ok(task)
}

/// The name of a process and its parent.
fn about(pid: i32) -> Result<(String, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (name, rest) = stat.rsplit_once(')').context("no form of proc(5)")?;
    let (_, name) = name.split_once('(').context("no form of proc(5)")?;
    let parent = rest.split_whitespace().nth(1).context("no parent")?;
    Ok((name.to_owned(), parent.parse()?))
}

#[test]
fn the_exit_code_is_that_of_the_program_below_pid_1() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        for code in [0, 3, 255] {
            let container = rich(bench, &format!("code-{code}"));
            container.shell(&format!("exit {code}"))?.with_code(code)?;
        }
        let script = "read name < /proc/1/comm; echo $name $PPID; echo err >&2";
        let shown = rich(bench, "shown").output(script)?;
        ensure!(shown == "runlxc-init 1\n", "{shown:?}");
        let filtered = rich(bench, "filtered").flags(&["--seccomp"]);
        let shown = filtered.output("grep Seccomp: /proc/1/status; sleep 0 & wait")?;
        ensure!(shown == "Seccomp:\t2\n", "{shown:?}");
        let killed = rich(bench, "killed").shell("kill -KILL $$")?;
        killed.with_code(137)?;
        let pouch = bench.container("pouch").flags(&["--env", "rich_mode=true"]);
        let shown = pouch.output("cat /proc/1/comm")?;
        ensure!(shown == "runlxc-init\n", "{shown:?}");
        let ordinary = bench.container("ordinary").output("cat /proc/1/comm")?;
        ensure!(ordinary == "cat\n", "{ordinary:?}");
        Ok(())
    });
}

#[test]
fn an_image_decides_which_init_it_has() {
    let images = [Image::Busybox, Image::DebianSystemd, Image::DebianSysvinit];
    check(RUNTIME, &images, |bench| {
        let (mode, pid_1) = match bench.image {
            Image::DebianSystemd => ("systemd", "systemd"),
            Image::DebianSysvinit => ("sbin-init", "init"),
            _ => ("dumb-init", "runlxc-init"),
        };
        let auto = ["--annotation", "org.pouch.rich.mode=auto"];
        let container = bench.container("auto").flags(&auto);
        let shown = container.output("cat /proc/1/comm")?;
        ensure!(shown == format!("{pid_1}\n"), "{mode}: {shown:?}");
        Ok(())
    });
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        for (number, (flag, value, why)) in [
            (
                "--annotation",
                "org.pouch.rich.mod=dumb-init",
                "the nearest known one is org.pouch.rich.mode",
            ),
            (
                "--annotation",
                "org.pouch.rich.signals=TERM:QUIT",
                "org.pouch.rich.mode is missing",
            ),
            (
                "--env",
                "rich_mode_launch_manner=dumb-init",
                "without rich_mode=true",
            ),
            (
                "--env",
                "ali_run_mode=vm",
                "the image has none of /usr/lib/systemd/systemd",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let container = bench.container(&format!("refused-{number}"));
            let refused = container.flags(&[flag, value]).shell("true")?;
            ensure!(refused.code() != 0, "{value}: it ran");
            ensure!(refused.stderr().contains(why), "{value}: {refused}");
        }
        let refused = rich(bench, "absent").run(&["/no/such/program"])?;
        ensure!(refused.stderr().contains("/no/such/program"), "{refused}");
        Ok(())
    });
}

#[test]
fn signals_reach_the_program_and_are_rewritten() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let script = format!("trap 'exit 7' TERM; trap 'exit 8' QUIT; {UNTIL_TRAPPED}");
        for (name, flags, code) in [
            ("passed", &[][..], 7),
            (
                "rewritten",
                &["--annotation", "org.pouch.rich.signals=TERM:QUIT"][..],
                8,
            ),
        ] {
            let task = ready(&rich(bench, name).flags(flags), &script)?;
            task.kill(Signal::SIGTERM)?;
            let ended = task.remove()?;
            ensure!(ended == code, "{name}: expected {code}, got {ended}");
        }
        Ok(())
    });
}

#[test]
fn all_means_each_process_once_and_never_pid_1() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let script = format!(
            "sh -c 'trap \"echo child >>/tmp/got\" USR1; : >/tmp/up; while :; do sleep 1 & wait; \
             done' & until [ -e /tmp/up ]; do sleep 0.01; done; trap 'echo own >>/tmp/got' USR1; \
             trap 'exit 6' TERM; {UNTIL_TRAPPED}"
        );
        let task = ready(&rich(bench, "all"), &script)?;
        task.kill_all(Signal::SIGUSR1)?;
        // One more, to each by way of pid 1: it comes after what --all sent.
        let lines = |count: u32| {
            format!(
                "until [ $(grep -c . /tmp/got) -ge {count} ]; do sleep 0.01; done; sort /tmp/got"
            )
        };
        let got = task.output(&lines(2))?;
        ensure!(got == "child\nown\n", "{got:?}");
        task.kill(Signal::SIGUSR1)?;
        let got = task.output(&lines(4))?;
        ensure!(got == "child\nchild\nown\nown\n", "{got:?}");
        task.kill(Signal::SIGTERM)?;
        let code = task.remove()?;
        ensure!(code == 6, "expected 6, got {code}");
        Ok(())
    });
}

#[test]
fn orphans_of_the_program_and_of_execs_leave_no_zombies() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let orphan = "sh -c 'sleep 0 & sleep 0 & true' & wait";
        let task = ready(
            &rich(bench, "orphans"),
            &format!("{orphan}; : >/tmp/ready; exec sleep 600"),
        )?;
        task.exec(&["sh", "-c", orphan])?.success()?;
        let states = "until ! grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do \
                      sleep 0.01; done; echo none";
        let shown = task.output(states)?;
        ensure!(shown.ends_with("none\n"), "{shown:?}");
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn execs_pauses_lists_and_stops_are_as_ever() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let task = rich(bench, "as-ever").detach(&["sleep", "600"])?;
        task.exec(&["sh", "-c", "exit 5"])?.with_code(5)?;
        let processes = task.processes()?;
        let pid = task.pid()?;
        ensure!(
            processes.len() == 2 && processes.contains(&pid),
            "{processes:?} with pid 1 {pid}"
        );
        let (name, _) = about(pid)?;
        ensure!(name == "runlxc-init", "pid 1 is {name}");
        task.pause()?;
        task.resume()?;
        let program = processes.into_iter().find(|&other| other != pid);
        let program = program.context("there is no program")?;
        for (signal, state) in [(Signal::SIGSTOP, 'T'), (Signal::SIGCONT, 'S')] {
            task.kill(signal)?;
            let what = "the program is stopped, or runs";
            until(what, SOON, Sources::none(), || {
                let stat = fs::read_to_string(format!("/proc/{program}/stat"))?;
                Ok(stat.contains(&format!(") {state} ")).then_some(()))
            })?;
            until("pid 1 waits for work", SOON, Sources::none(), || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
                Ok(stat.contains(") S ").then_some(()))
            })?;
        }
        let code = task.kill_and_remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        for_end_of(program, SOON)
    });
}

#[test]
fn the_program_is_started_again_where_that_is_asked_for() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        image_init::is_started_again(|name| rich(bench, name))?;
        // A signal that is rewritten stops it as well, and each program gets it once.
        let container = rich(bench, "rewritten")
            .rich("restart=always")
            .rich("signals=TERM:USR1");
        let script = format!("trap 'echo got; exit 4' USR1; {UNTIL_TRAPPED}");
        let task = ready(&container, &script)?;
        let init = task.pid()?;
        ensure!(task.processes()?.len() >= 3, "{:?}", task.processes());
        let filtered = about(init)?;
        ensure!(filtered.0 == "runlxc-init", "{filtered:?}");
        task.kill(Signal::SIGTERM)?;
        let code = task.remove()?;
        ensure!(code == 4, "rewritten: expected 4, got {code}");
        // What cannot be executed fails the start, and is not tried again.
        let nonsense = bench.containerd.work().join("nonsense");
        fs::write(&nonsense, "nonsense")?;
        fs::set_permissions(&nonsense, fs::Permissions::from_mode(0o755))?;
        let refused = rich(bench, "nonsense")
            .rich("restart=always")
            .bound(&nonsense, "/bin/nonsense")
            .run(&["/bin/nonsense"])?;
        let why = "exec format error";
        ensure!(
            refused.code() != 0 && refused.stderr().contains(why),
            "{refused}"
        );
        for (id, _) in bench.ctr().tasks()? {
            bench.ctr().task(&id).remove()?;
        }
        Ok(())
    });
}

#[test]
fn a_terminal_belongs_to_the_program_and_its_jobs() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let mut terminal = rich(bench, "tty").terminal(SIZE, &["sh"])?;
        terminal.type_text("echo up $((40+2))\n")?;
        terminal.expect("up 42", SOON)?;
        // A job in the foreground that is interrupted, a job that is stopped and comes back.
        terminal.type_text("sh -c 'trap \"echo job-$((1+1)); exit 3\" INT; echo in-$((1+1)); while :; do sleep 1; done'\n")?;
        terminal.expect("in-2", SOON)?;
        terminal.type_text("\x03")?;
        terminal.expect("job-2", SOON)?;
        terminal.type_text("echo ended $?\n")?;
        terminal.expect("ended 3", SOON)?;
        terminal.type_text("sh -c 'echo again-$((1+1)); exec sleep 600'\n")?;
        terminal.expect("again-2", SOON)?;
        terminal.type_text("\x1a")?;
        terminal.expect("Stopped", SOON)?;
        // The first is warned of the job that was stopped.
        terminal.type_text("kill -KILL %1; exit 9\nexit 9\n")?;
        let (code, shown) = terminal.finish(SOON)?;
        ensure!(code == 9, "expected 9, got {code}: {shown:?}");
        Ok(())
    });
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Program,
    PidOne,
    Shim,
}

/// Waits until containerd has cleaned up behind a shim, and removes what is left of the container.
fn remove_behind_containerd(task: &Task<'_>) -> Result<()> {
    until("the task is gone or stopped", SOON, Sources::none(), || {
        let status = task.status()?;
        let over = status.is_none_or(|status| status.state == "STOPPED");
        Ok(over.then_some(()))
    })?;
    if task.status()?.is_some() {
        task.delete()?;
    }
    task.remove_container()
}

#[test]
fn whoever_is_killed_nothing_is_left() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        for victim in [Victim::Program, Victim::PidOne, Victim::Shim] {
            let name = format!("killed-{victim:?}").to_lowercase();
            let script = "sleep 601 & : >/tmp/ready; wait";
            let task = ready(&rich(bench, &name), script)?;
            let (processes, init) = (task.processes()?, task.pid()?);
            ensure!(processes.len() == 3, "{processes:?}");
            let program = processes
                .iter()
                .find(|&&pid| about(pid).is_ok_and(|(_, parent)| parent == init));
            let shim = bench.containerd.shim_of(&task.id)?;
            let pid = match victim {
                Victim::Program => program.copied(),
                Victim::PidOne => Some(init),
                Victim::Shim => shim,
            };
            let pid = pid.with_context(|| format!("there is no {victim:?}"))?;
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            for pid in processes {
                for_end_of(pid, SOON).with_context(|| format!("{victim:?} was killed"))?;
            }
            if matches!(victim, Victim::Shim) {
                remove_behind_containerd(&task)?;
                continue;
            }
            let code = task.remove()?;
            ensure!(code == 137, "{victim:?}: expected 137, got {code}");
        }
        Ok(())
    });
}

#[test]
fn a_privileged_program_cannot_write_pid_1s_file() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let script = "(: >/proc/1/exe) 2>&1; mount -o remount,rw,bind /proc/1/exe 2>&1; \
                      (: >/proc/1/exe) 2>&1; true";
        let shown = rich(bench, "exe").flags(&["--privileged"]).output(script)?;
        let refusals = shown.matches("Read-only file system").count();
        ensure!(refusals == 2, "{shown:?}");
        Ok(())
    });
}
