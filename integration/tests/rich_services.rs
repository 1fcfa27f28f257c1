//! Rich containers of images without an init: services beside the program.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::Container,
    images::Image,
    runtime::Runtime,
    wait::{SOON, for_end_of},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runlxc;

/// A service in the way of LSB, which says what becomes of it.
const SCRIPT: &str = "#!/bin/sh\n[ $1 != start ] || [ ! -e /seen/broken ] || { echo no disk >&2; exit 4; }\n\
                      echo old $1 >>/seen/order\n";

const SERVICE: &str = "sh:trap 'echo new stop >>/seen/order; exit' TERM; echo new start >>/seen/order; \
                       : >/tmp/new; while :; do sleep 1 & wait; done";

/// A container with annotations, which are given without their prefix.
fn rich<'a>(bench: &Bench<'a>, name: &str, annotations: &[&str]) -> Container<'a> {
    let container = bench.container(name).rich("mode=dumb-init");
    annotations.iter().fold(container, |container, annotation| {
        container.rich(annotation)
    })
}

/// The same with the script, and a directory of the host as `/seen`.
fn seen<'a>(container: Container<'a>, directory: &Path) -> Result<Container<'a>> {
    let script = directory.join("old");
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let container = container.bound(&script, "/etc/init.d/old");
    Ok(container.bound(directory, "/seen"))
}

#[test]
fn services_start_before_the_program_and_stop_after_it_in_order() {
    check(RUNTIME, &[Image::Busybox, Image::DebianSystemd], |bench| {
        let directory = tempfile::tempdir()?;
        let new = format!("service.new={SERVICE}");
        let mut annotations = vec!["services=old,new", &new, "service.new.ready=file:/tmp/new"];
        if bench.image == Image::DebianSystemd {
            annotations[0] = "services=old,new,said";
            annotations.push("service.said=sh:systemd-notify --ready; exec sleep 600");
            annotations.push("service.said.ready=notify");
        }
        let container = seen(rich(bench, "order", &annotations), directory.path())?;
        let script = "echo program >>/seen/order; cat /proc/1/comm; exit 5";
        let ended = container.shell(script)?.with_code(5)?;
        ensure!(ended.stdout() == "runlxc-init\n", "{ended}");
        let order = fs::read_to_string(directory.path().join("order"))?;
        let expected = "old start\nnew start\nprogram\nnew stop\nold stop\n";
        ensure!(order == expected, "{order:?}");
        Ok(())
    });
}

#[test]
fn services_come_again_have_no_rights_of_their_own_and_their_failure_is_told() {
    check(RUNTIME, &[Image::DebianSystemd, Image::Busybox], |bench| {
        let mut dying = vec!["services=dying", "service.dying=sh:echo x >>/tmp/runs"];
        let is_with_systemd = bench.image == Image::DebianSystemd;
        if is_with_systemd {
            // Each start says so more often than a socket that nobody reads holds.
            dying[1] = "service.dying=sh:for i in $(seq 20); do systemd-notify --ready || exit; done; \
                        echo x >>/tmp/runs";
            dying.push("service.dying.ready=notify");
        }
        let script = "until [ $(grep -c x /tmp/runs) -ge 4 ]; do sleep 0.05; done; echo again";
        let shown = rich(bench, "dying", &dying).output(script)?;
        ensure!(shown == "again\n", "{shown:?}");
        if is_with_systemd {
            return Ok(());
        }

        let rights = "grep -hE 'Seccomp:|Cap|NoNewPrivs'";
        let service = format!(
            "service.own=sh:{rights} /proc/self/status /proc/$PPID/status >/tmp/rights; : >/tmp/done; \
             exec sleep 600"
        );
        let own = ["services=own", &service, "service.own.ready=file:/tmp/done"];
        let script = format!(
            "{rights} /proc/self/status /proc/self/status >/tmp/mine; cmp /tmp/mine /tmp/rights && \
             grep -c Seccomp:.2 /tmp/mine"
        );
        let container = rich(bench, "rights", &own).flags(&["--seccomp"]);
        let shown = container.output(&script)?;
        ensure!(shown == "2\n", "{shown:?}");

        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("broken"), "")?;
        for (number, (annotations, why)) in [
            (
                &["services=gone"][..],
                "org.pouch.rich.services: gone cannot be started: /etc/init.d/gone: No such file",
            ),
            (
                &["services=old"],
                "org.pouch.rich.services: old (/etc/init.d/old start): exit status 4: no disk",
            ),
            (
                &["services=bad", "service.bad=/no/such x"],
                "org.pouch.rich.services: bad cannot be started: /no/such: No such file",
            ),
            (
                &[
                    "services=early",
                    "service.early=sh:exit 3",
                    "service.early.ready=file:/tmp/x",
                ],
                "org.pouch.rich.services: early ended before it was ready: exit status 3",
            ),
            (
                &["services=web", "service.wbe=/bin/web"],
                "service.wbe: org.pouch.rich.services names no such service",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let container = rich(bench, &format!("refused-{number}"), annotations);
            let refused = seen(container, directory.path())?.shell("true")?;
            ensure!(refused.code() != 0, "{why}: it ran");
            ensure!(refused.stderr().contains(why), "{why}: {refused}");
            // ctr leaves a task that did not start, which may be about to end.
            for (id, _) in bench.ctr().tasks()? {
                bench.ctr().task(&id).remove()?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_stop_reaches_the_program_and_a_killed_supervisor_ends_nothing() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let directory = tempfile::tempdir()?;
        let new = format!("service.new={SERVICE}");
        let annotations = ["services=new", &new, "service.new.ready=file:/tmp/new"];
        for killed in [false, true] {
            let name = if killed { "killed" } else { "stopped" };
            let order = directory.path().join("order");
            fs::write(&order, "")?;
            let container = seen(rich(bench, name, &annotations), directory.path())?;
            let script = "trap 'echo program stop >>/seen/order; exit 7' TERM; : >/tmp/up; \
                          while :; do sleep 1 & wait; done";
            let task = container.detach(&["sh", "-c", script])?;
            task.exec(&["sh", "-c", "until [ -e /tmp/up ]; do sleep 0.01; done"])?
                .success()?;
            let init = task.pid()?;
            if killed {
                let supervisor = task.processes()?.into_iter().find(|pid| {
                    let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
                    *pid != init && comm.is_ok_and(|comm| comm == "runlxc-init\n")
                });
                let supervisor = supervisor.context("there is no supervisor")?;
                kill(Pid::from_raw(supervisor), Signal::SIGKILL)?;
                for_end_of(supervisor, SOON)?;
            }
            task.kill(Signal::SIGTERM)?;
            let code = task.remove()?;
            ensure!(code == 7, "{name}: expected 7, got {code}");
            let order = fs::read_to_string(&order)?;
            let expected = match killed {
                false => "new start\nprogram stop\nnew stop\n",
                true => "new start\nprogram stop\n",
            };
            ensure!(order == expected, "{name}: {order:?}");
        }
        Ok(())
    });
}

#[test]
fn the_start_waits_until_the_program_is_ready() {
    check(RUNTIME, &[Image::Busybox], |bench| {
        let late = "sleep 0.5";
        for (name, ready, program, is_there) in [
            (
                "port",
                "ready=port:8080",
                "exec httpd -f -p 8080",
                "grep -q ':1F90 .* 0A ' /proc/net/tcp /proc/net/tcp6",
            ),
            (
                "file",
                "ready=file:/tmp/up",
                ": >/tmp/up; exec sleep 600",
                "test -e /tmp/up",
            ),
        ] {
            let container = rich(bench, name, &[ready]);
            let script = format!("{late}; {program}");
            let task = container.detach(&["sh", "-c", &script])?;
            task.exec(&["sh", "-c", is_there])?
                .success()
                .with_context(|| format!("{name}: it was not ready"))?;
            task.kill_and_remove()?;
        }
        for (name, annotations, program, why) in [
            (
                "never",
                &["ready=port:8080", "ready-timeout=1"][..],
                "exec sleep 600",
                "org.pouch.rich.ready (port:8080): the program was not ready after 1s",
            ),
            (
                "gone",
                &["ready=file:/tmp/up"],
                "exit 3",
                "org.pouch.rich.ready (file:/tmp/up): the container ended before its program was \
                 ready",
            ),
            (
                "silent",
                &["ready=notify", "ready-timeout=1"],
                "case $NOTIFY_SOCKET in @org.pouch.rich.ready/*) exec sleep 600;; esac",
                "org.pouch.rich.ready (notify): the program was not ready after 1s",
            ),
            (
                "nobody",
                &["ready=booted"],
                "true",
                "only systemd says booted, and mode is dumb-init",
            ),
        ] {
            let refused = rich(bench, name, annotations).shell(program)?;
            ensure!(refused.code() != 0, "{name}: it ran");
            ensure!(refused.stderr().contains(why), "{name}: {refused}");
            for (id, _) in bench.ctr().tasks()? {
                bench.ctr().task(&id).remove()?;
            }
        }
        Ok(())
    });
}

#[test]
fn components_of_the_operator_run_on_either_side_of_the_program() {
    let components = tempfile::tempdir().unwrap();
    let options = operators(components.path()).unwrap();
    let passwd = components.path().join("passwd");
    fs::write(&passwd, "root:x:0:0::/:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n").unwrap();
    check(
        RUNTIME,
        &[Image::Busybox, Image::DebianSystemd, Image::DebianSysvinit],
        |bench| {
            let mode = match bench.image {
                Image::DebianSystemd => "mode=systemd",
                Image::DebianSysvinit => "mode=sbin-init",
                _ => "mode=dumb-init",
            };
            let with = |name: &str| {
                let mut container = bench.container(name).rich(mode);
                if bench.image == Image::Busybox {
                    container = container.bound(&passwd, "/etc/passwd");
                }
                container.flags(&["--runtime-config-path", &options])
            };
            let script = "until [ -e /tmp/last ]; do sleep 0.05; done; cat /dev/shm/first; \
                          echo x 2>/dev/null >/run/pouch/first/x || echo read-only";
            let ended = with("both").rich("components=last").shell(script)?;
            let shown = ended.with_code(0)?.stdout();
            ensure!(shown == "first 1\nread-only\n", "{shown:?}");
            let refused = with("none").rich("components=lost").shell("true")?;
            let why = "component lost: ";
            ensure!(
                refused.code() != 0 && refused.stderr().contains(why),
                "{refused}"
            );
            Ok(())
        },
    );
}

/// Components `first`, which every rich container has, and `last`; gives the runtime's options.
fn operators(root: &Path) -> Result<String> {
    let first = "#!/bin/sh\necho first $(id -u) >/dev/shm/first\nexec sleep 600\n";
    for (name, manifest) in [
        (
            "first",
            "start = \"/run/pouch/first/agent\"\nuser = \"daemon\"\n",
        ),
        (
            "last",
            "start = \"sh:until [ -e /dev/shm/first ]; do sleep 0.05; done; : >/tmp/last; exec sleep 600\"\n\
             when = \"after\"\n",
        ),
    ] {
        let directory = root.join(name);
        fs::create_dir(&directory)?;
        fs::write(directory.join("component.toml"), manifest)?;
        let agent = directory.join("agent");
        fs::write(&agent, first)?;
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    let options = root.join("options.toml");
    let text = format!(
        "ComponentsRoot = \"{}\"\nComponents = \"first\"\n",
        root.display()
    );
    fs::write(&options, text)?;
    Ok(options.display().to_string())
}
