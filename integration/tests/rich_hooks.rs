//! Hooks in rich containers, by stock containerd: they run once for each run, whoever is killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::{Container, Task},
    images::Image,
    runtime::Runtime,
    wait::{SOON, Sources, for_end_of, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runlxc;

/// A container with hooks, and a directory of the host that it has as `/log`.
struct Logged<'a> {
    container: Container<'a>,
    log: PathBuf,
}

impl<'a> Logged<'a> {
    /// The hooks are annotations without their prefix.
    fn new(bench: &Bench<'a>, name: &str, hooks: &[&str]) -> Result<Self> {
        let log = bench.containerd.work().join(name);
        fs::create_dir_all(&log)?;
        let mode = match bench.image {
            Image::DebianSystemd => "mode=systemd",
            Image::DebianSysvinit | Image::UbuntuUpstart => "mode=sbin-init",
            _ => "mode=dumb-init",
        };
        let container = bench.container(name).bound(&log, "/log").rich(mode);
        let container = hooks
            .iter()
            .fold(container, |container, hook| container.rich(hook));
        Ok(Self { container, log })
    }

    /// What was appended to a file, in one line.
    fn lines(&self, file: &str) -> String {
        let text = fs::read_to_string(self.log.join(file)).unwrap_or_default();
        text.trim_end().replace('\n', " ")
    }

    fn expect(&self, expected: &str) -> Result<()> {
        let lines = self.lines("order");
        ensure!(lines == expected, "expected {expected:?}, got {lines:?}");
        Ok(())
    }

    /// Waits until the last of them is there.
    fn wait_for(&self, expected: &str) -> Result<()> {
        let sources = Sources::none().directory(&self.log)?;
        let what = format!("{expected:?} in the order of events");
        until(&what, SOON, sources, || {
            Ok((self.lines("order") == expected).then_some(()))
        })
    }
}

const HOOKS: [&str; 2] = [
    "prestart=sh:echo pre >>/log/order",
    "poststop=sh:echo post >>/log/order",
];

const PROGRAM: &str = "trap 'exit 5' TERM; echo run >>/log/order; while :; do sleep 1 & wait; done";

/// How a run ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Stop,
    Kill,
    Program,
    PidOne,
}

/// The process that runs [`PROGRAM`], whoever its parent is.
fn program(task: &Task<'_>) -> Result<i32> {
    let command = format!("sh\0-c\0{PROGRAM}\0");
    let is_it = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|own| own == command.as_bytes())
    };
    let all = task.processes()?;
    all.into_iter().find(is_it).context("no such process")
}

/// Ends it so; gives the code that is to be expected.
fn end(task: &Task<'_>, ending: Ending) -> Result<i32> {
    let init = task.pid()?;
    let victim = match ending {
        Ending::Stop => return task.kill(Signal::SIGTERM).map(|()| 5),
        Ending::Kill => return task.kill(Signal::SIGKILL).map(|()| 137),
        Ending::PidOne => init,
        Ending::Program => program(task)?,
    };
    kill(Pid::from_raw(victim), Signal::SIGKILL)?;
    Ok(137)
}

#[test]
fn they_run_once_for_each_run_however_it_ends() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let logged = Logged::new(bench, "endings", &HOOKS)?;
        let mut task = logged.container.detach(&["sh", "-c", PROGRAM])?;
        let mut expected = String::new();
        for ending in [Ending::Stop, Ending::Kill, Ending::Program, Ending::PidOne] {
            expected += "pre run";
            logged.wait_for(&expected)?;
            let code = end(&task, ending)?;
            expected += " post";
            // Nobody has deleted anything yet.
            logged.wait_for(&expected)?;
            task.wait()?;
            let ended = task.delete()?;
            ensure!(ended == code, "{ending:?}: expected {code}, got {ended}");
            logged.expect(&expected)?;
            let again = ["tasks", "start", "--detach", &task.id];
            bench.ctr().call(&again)?.success()?;
            task = bench.ctr().task(&task.id);
            expected += " ";
        }
        expected += "pre run";
        logged.wait_for(&expected)?;
        // Deleted at once: the hook is waited for.
        let code = task.kill_and_remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        logged.expect(&(expected + " post"))
    });
}

/// An image for each mode, and for each init of those.
const MODES: [Image; 4] = [
    Image::Busybox,
    Image::DebianSystemd,
    Image::DebianSysvinit,
    Image::UbuntuUpstart,
];

/// How often each mode is started and ended, if not so often as `POUCH_CYCLES` says.
const CYCLES: usize = 4;

fn cycles() -> Result<usize> {
    std::env::var("POUCH_CYCLES").map_or(Ok(CYCLES), |count| {
        count.parse().context("POUCH_CYCLES is no number")
    })
}

#[test]
fn cycles_of_start_and_end_run_each_hook_once_in_each() {
    check(RUNTIME, &MODES, |bench| {
        let name = match bench.image {
            Image::DebianSystemd => "systemd-cycles",
            Image::DebianSysvinit => "sbin-init-cycles",
            Image::UbuntuUpstart => "upstart-cycles",
            _ => "dumb-init-cycles",
        };
        let logged = Logged::new(bench, name, &HOOKS)?;
        let mut task = logged.container.detach(&["sh", "-c", PROGRAM])?;
        let endings = [Ending::Stop, Ending::Kill, Ending::Program, Ending::PidOne];
        let mut expected = String::new();
        for (number, ending) in endings.into_iter().cycle().take(cycles()?).enumerate() {
            let in_cycle = || format!("cycle {number}, {ending:?}");
            if number > 0 {
                let start = ["tasks", "start", "--detach", &task.id];
                bench.ctr().call(&start)?.success().with_context(in_cycle)?;
                task = bench.ctr().task(&task.id);
                expected += " ";
            }
            expected += "pre run";
            logged.wait_for(&expected).with_context(in_cycle)?;
            let (init, code) = (task.pid()?, end(&task, ending).with_context(in_cycle)?);
            for_end_of(init, SOON).with_context(in_cycle)?;
            task.wait()?;
            let ended = task.delete()?;
            ensure!(ended == code, "{}: {ended}, not {code}", in_cycle());
            expected += " post";
            logged.expect(&expected).with_context(in_cycle)?;
        }
        task.remove_container()
    });
}

#[test]
fn they_stand_around_an_images_systemd() {
    check(RUNTIME, &[Image::DebianSystemd], |bench| {
        let hooks = [
            "prestart=sh:echo pre $(cat /proc/1/comm) >>/log/order",
            "poststop=sh:echo post $(cat /proc/1/comm) $(cat /etc/left) >>/log/order",
        ];
        let logged = Logged::new(bench, "systemd", &hooks)?;
        let script = "echo run $(cat /proc/1/comm) >>/log/order; echo kept >/etc/left; exit 3";
        logged.container.shell(script)?.with_code(3)?;
        logged.expect("pre runlxc-init run systemd post runlxc-init kept")
    });
}

#[test]
fn behind_a_killed_shim_poststop_runs_from_the_disk() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        for (name, hooks) in [
            ("shim", HOOKS),
            // containerd gives it 5 seconds.
            (
                "slow",
                [HOOKS[0], "poststop=sh:echo post >>/log/order; sleep 1000"],
            ),
        ] {
            let logged = Logged::new(bench, name, &hooks)?;
            let task = logged.container.detach(&["sh", "-c", PROGRAM])?;
            logged.wait_for("pre run")?;
            let processes = task.processes()?;
            let shim = bench.containerd.shim_of(&task.id)?;
            let shim = shim.context("there is no shim")?;
            kill(Pid::from_raw(shim), Signal::SIGKILL)?;
            for pid in processes {
                for_end_of(pid, SOON)?;
            }
            until("the task is gone or stopped", SOON, Sources::none(), || {
                let status = task.status()?;
                let over = status.is_none_or(|status| status.state == "STOPPED");
                Ok(over.then_some(()))
            })?;
            if task.status()?.is_some() {
                task.delete()?;
            }
            // containerd drops the task of a dead shim before it has cleaned up after it.
            logged.wait_for("pre run post")?;
            task.remove_container()?;
            logged.expect("pre run post")?;
        }
        Ok(())
    });
}

#[test]
fn a_shim_killed_in_a_hook_leaves_nothing() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let hooks = [HOOKS[0], "poststop=sh:echo post >>/log/order; sleep 1000"];
        let logged = Logged::new(bench, "in-hook", &hooks)?;
        let task = logged.container.detach(&["sh", "-c", PROGRAM])?;
        logged.wait_for("pre run")?;
        task.kill(Signal::SIGTERM)?;
        logged.wait_for("pre run post")?;
        let shim = bench.containerd.shim_of(&task.id)?;
        let shim = shim.context("there is no shim")?;
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
        for_end_of(shim, SOON)?;
        until("the task is gone or stopped", SOON, Sources::none(), || {
            let status = task.status()?;
            let over = status.is_none_or(|status| status.state == "STOPPED");
            Ok(over.then_some(()))
        })?;
        if task.status()?.is_some() {
            task.delete()?;
        }
        task.remove_container()?;
        logged.expect("pre run post")
    });
}

#[test]
fn a_prestart_hook_that_fails_fails_the_start_in_one_line() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        for (name, hook, why) in [
            (
                "fails",
                "prestart=sh:echo no disk >&2; exit 3",
                "org.pouch.rich.prestart (\"echo no disk >&2; exit 3\"): exit status 3, it said \
                 \"no disk\"",
            ),
            (
                "missing",
                "prestart=/no/such/hook",
                "cannot run: exec: \"/no/such/hook\"",
            ),
            (
                "hangs",
                "prestart=sh:sleep 1000 & exec sleep 1000",
                "it still ran after 1s and was killed",
            ),
            (
                "floods",
                "prestart=sh:yes | head -c 100000000; echo; echo last; exit 4",
                "exit status 4, it said \"last\"",
            ),
        ] {
            let time = match name {
                "hangs" => "hook-timeout=1",
                _ => "hook-timeout=600",
            };
            let logged = Logged::new(bench, name, &[hook, HOOKS[1], time])?;
            let refused = logged.container.shell("echo run >>/log/order")?;
            ensure!(refused.code() != 0, "{name}: it ran");
            let said = refused.stderr().replace("\\\"", "\"");
            ensure!(said.contains(why), "{name}: {refused}");
            logged.wait_for("post")?;
            // ctr 1.6 leaves a task that did not start.
            for (id, _) in bench.ctr().tasks()? {
                let task = bench.ctr().task(&id);
                task.delete()?;
                task.remove_container()?;
            }
            logged.expect("post")?;
        }
        Ok(())
    });
}

#[test]
fn scripts_of_the_host_run_in_the_container() {
    check(RUNTIME, &[Image::Busybox, Image::DebianSystemd], |bench| {
        let root = tempfile::tempdir()?;
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
        let script = |name: &str, word: &str| -> Result<PathBuf> {
            let path = root.path().join(name);
            let text =
                format!("#!/bin/sh\necho {word}:$1:$(ls /run/pouch-hooks | wc -l) >>/log/order\n");
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            Ok(path)
        };
        let (before, _after) = (script("pre.sh", "pre")?, script("post.sh", "post")?);
        let options = root.path().join("options.toml");
        fs::write(
            &options,
            format!("HooksRoot = \"{}\"\n", root.path().display()),
        )?;
        let hooks = ["prestart=host:pre.sh a", "poststop=host:post.sh b"];
        let name = format!("of-host-{:?}", bench.image).to_lowercase();
        let mut logged = Logged::new(bench, &name, &hooks)?;
        let options = options.display().to_string();
        logged.container = logged.container.flags(&["--runtime-config-path", &options]);
        let task = logged.container.detach(&["sh", "-c", PROGRAM])?;
        logged.wait_for("pre:a:2 run")?;
        // What comes after the end does not need it.
        fs::remove_file(before)?;
        task.kill(Signal::SIGTERM)?;
        logged.wait_for("pre:a:2 run post:b:1")?;
        task.remove()?;
        logged.expect("pre:a:2 run post:b:1")
    });
}

#[test]
fn what_does_not_stop_anything_is_logged() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let hooks = [
            "prestart=sh:echo spoken-before; exit 3",
            "poststop=sh:yes | head -c 100000000; echo; echo spoken-after; exit 4",
            "hook-failure=warn",
            // A busy machine takes its time for so many bytes.
            "hook-timeout=600",
        ];
        let logged = Logged::new(bench, "warned", &hooks)?;
        logged
            .container
            .shell("echo run >>/log/order")?
            .with_code(0)?;
        logged.expect("run")?;
        let log = bench.containerd.log_file();
        until("both are in the log", SOON, Sources::none(), || {
            let log = fs::read_to_string(&log)?;
            let all = [
                "spoken-before",
                "spoken-after",
                "exit status 3",
                "exit status 4",
            ];
            Ok(all.iter().all(|words| log.contains(words)).then_some(()))
        })?;
        let bytes = fs::metadata(&log)?.len();
        ensure!(bytes < 1 << 20, "the log has {bytes} bytes");
        Ok(())
    });
}

#[test]
fn hooks_that_mean_nothing_are_refused() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        for (number, (hooks, why)) in [
            (
                &["prestrat=/bin/true"][..],
                "the nearest known one is org.pouch.rich.prestart",
            ),
            (&["prestart=bin/true"], "neither an absolute path"),
            (
                &["poststop=host:/bin/true"],
                "is no name of a script of the host's, as in host:prestart.sh",
            ),
            (
                &["poststop=host:no-such-script"],
                "script no-such-script of the host: /etc/runlxc/hooks",
            ),
            (
                &["prestart=/bin/true", "hook-timeout=0"],
                "no number of seconds from 1 to 600",
            ),
            (&["hook-failure=warn"], "there is no hook"),
        ]
        .into_iter()
        .enumerate()
        {
            let logged = Logged::new(bench, &format!("refused-{number}"), hooks)?;
            let refused = logged.container.shell("true")?;
            ensure!(refused.code() != 0, "{hooks:?}: it ran");
            ensure!(refused.stderr().contains(why), "{hooks:?}: {refused}");
        }
        let hook = ["--annotation", "org.pouch.rich.prestart=/bin/true"];
        let refused = bench.container("no-mode").flags(&hook).shell("true")?;
        let why = "org.pouch.rich.mode is missing";
        ensure!(refused.stderr().contains(why), "{refused}");
        Ok(())
    });
}
