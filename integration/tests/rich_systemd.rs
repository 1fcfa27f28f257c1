//! Rich containers with an image's own systemd as pid 1.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::{Container, Task},
    image_init::{self, Layers},
    images::Image,
    process::Finished,
    runtime::Runtime,
};
use nix::sys::signal::Signal;

const RUNTIME: Runtime = Runtime::Runlxc;

/// Until systemd has nothing more to start; some of its own units fail in any container.
const SETTLED: &str = "until systemctl is-system-running --wait 2>/dev/null | grep -qE '^(running|degraded)$'; \
                       do sleep 0.1; done";

fn rich<'a>(bench: &Bench<'a>, name: &str) -> Container<'a> {
    bench.container(name).rich("mode=systemd")
}

fn on_systemd(behaviour: impl Fn(&Bench<'_>) -> Result<()>) {
    check(RUNTIME, &[Image::DebianSystemd], behaviour);
}

/// What a shell in the running container says, whatever its exit code.
fn asked(task: &Task<'_>, script: &str) -> Result<Finished> {
    task.exec(&["sh", "-c", script])
}

#[test]
fn the_program_is_a_unit_and_its_output_and_exit_code_are_the_containers() {
    on_systemd(|bench| {
        image_init::ends_as_the_program(|name| rich(bench, name))?;
        let script = "cat /proc/1/comm; cat /proc/self/cgroup | grep name=systemd; \
                      systemctl is-active pouch-application.service; cat /etc/machine-id | wc -c";
        let shown = rich(bench, "shown").output(script)?;
        let unit = "name=systemd:/system.slice/pouch-application.service\nactive\n33\n";
        ensure!(
            shown.starts_with("systemd\n") && shown.ends_with(unit),
            "{shown:?}"
        );
        Ok(())
    });
}

#[test]
fn the_start_waits_for_the_programs_word_or_that_of_systemd() {
    on_systemd(|bench| {
        // What it says after that finds somebody who hears it, too.
        let script = "sleep 0.5; : >/tmp/up; systemd-notify --ready && systemd-notify --status=x && \
                      : >/tmp/said; exec sleep 600";
        let task = rich(bench, "word")
            .rich("ready=notify")
            .detach(&["sh", "-c", script])?;
        asked(&task, "test -e /tmp/up")?.success()?;
        asked(&task, "until [ -e /tmp/said ]; do sleep 0.05; done")?.success()?;
        task.kill_and_remove()?;
        let task = rich(bench, "booted")
            .rich("ready=booted")
            .detach(&["sleep", "600"])?;
        let state = asked(&task, "systemctl is-system-running")?.stdout();
        let is_up = ["running\n", "degraded\n"].contains(&state.as_str());
        ensure!(is_up, "{state}");
        task.kill_and_remove()?;
        Ok(())
    });
}

#[test]
fn user_environment_directory_and_any_argument_arrive_intact() {
    on_systemd(|bench| {
        let container = rich(bench, "intact").rich("user=daemon").flags(&[
            "--env",
            "ODD=a b $HOME %n \"q\" \\ 'x' ${Y} %%",
            "--cwd",
            "/var/tmp",
            "--seccomp",
        ]);
        let script = "id -u; id -g; pwd; printf '[%s]\\n' \"$ODD\" \"$@\"";
        let odd = "two\nlines $HOME %i \"q\" \\ 'x'; &";
        let ended = container.run(&["sh", "-c", script, "name", odd, "", "-x", "@y"])?;
        let expected = format!(
            "1\n1\n/var/tmp\n[a b $HOME %n \"q\" \\ 'x' ${{Y}} %%]\n[{odd}]\n[]\n[-x]\n[@y]\n"
        );
        ensure!(ended.code() == 0 && ended.stdout() == expected, "{ended}");
        Ok(())
    });
}

#[test]
fn services_run_and_a_stop_ends_them_in_order() {
    on_systemd(|bench| {
        let directory = tempfile::tempdir()?;
        let unit = directory.path().join("slow.service");
        fs::write(
            &unit,
            "[Service]\nExecStart=sleep 600\nExecStop=sh -c 'echo stopped >/seen/stop'\n",
        )?;
        let container = rich(bench, "services")
            .rich("services=cron,slow,rsyslog")
            .bound(&unit, "/etc/systemd/system/slow.service")
            .bound(directory.path(), "/seen");
        let script = "trap 'echo term; exit 7' TERM; : >/seen/up; while :; do sleep 1 & wait; done";
        let task = container.detach(&["sh", "-c", script])?;
        asked(&task, SETTLED)?;
        asked(&task, "until [ -e /seen/up ]; do sleep 0.1; done")?;
        for service in ["cron", "slow", "rsyslog", "pouch-application"] {
            let shown = asked(&task, &format!("systemctl is-active {service}"))?;
            ensure!(shown.stdout() == "active\n", "{service}: {shown}");
        }
        // The image has no host keys.
        let failed = "systemctl --failed --no-legend | grep -v ssh.service";
        let failed = asked(&task, failed)?.stdout();
        ensure!(failed.is_empty(), "{failed}");
        task.metrics()?;
        // What units write is theirs: the image below is as it was.
        task.kill(Signal::SIGTERM)?;
        let code = task.remove()?;
        ensure!(code == 7, "expected 7, got {code}");
        let stopped = fs::read_to_string(directory.path().join("stop"));
        ensure!(stopped.context("ExecStop was not run")? == "stopped\n");
        Ok(())
    });
}

#[test]
fn nothing_is_written_to_the_image_but_by_services() {
    on_systemd(|bench| {
        let task = rich(bench, "upper").detach(&["sleep", "600"])?;
        let image = Layers::of(&task)?;
        asked(&task, SETTLED)?;
        let listed = image_init::changes(&task)?;
        let allowed = [
            "dev",
            "etc",
            "etc/.pwd.lock",
            "run",
            "tmp",
            "var",
            "proc",
            "sys",
        ];
        let strange: Vec<_> = listed
            .iter()
            .filter(|path| !allowed.contains(&path.as_str()) && !path.starts_with("var/"))
            .collect();
        ensure!(strange.is_empty(), "{listed:?}");
        let code = task.kill_and_remove()?;
        ensure!(code == 137, "expected 137, got {code}");
        image.is_the_same()
    });
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    on_systemd(|bench| {
        let cases = [
            (
                "user",
                "nobody-at-all",
                "no user \"nobody-at-all\" in /etc/passwd",
            ),
            ("services", "corn", "the image has no corn.service in"),
            ("services", "a b", "is no name of a service"),
            ("signals", "TERM:QUIT", "mode systemd has no such thing"),
        ];
        image_init::refuses(|name| rich(bench, name), &cases)?;
        // With more systemd may be started, and be killed then.
        let small = rich(bench, "small").flags(&["--memory-limit", "2097152"]);
        let refused = small.shell("true")?;
        let why = "the memory limit of 2097152 bytes is too small to start";
        ensure!(
            refused.code() != 0 && refused.stderr().contains(why),
            "{refused}"
        );
        let refused = rich(bench, "absent").run(&["/no/such/program"])?;
        ensure!(refused.stderr().contains("/no/such/program"), "{refused}");
        Ok(())
    });
    check(RUNTIME, &[Image::Busybox], |bench| {
        let refused = rich(bench, "no-systemd").shell("true")?;
        let why = "the image has none of /usr/lib/systemd/systemd, /lib/systemd/systemd, and \
                   /sbin/init is no link to a systemd";
        ensure!(
            refused.code() != 0 && refused.stderr().contains(why),
            "{refused}"
        );
        Ok(())
    });
}

#[test]
fn the_container_ends_when_the_programs_parent_is_killed() {
    on_systemd(|bench| {
        let task = rich(bench, "parent").detach(&["sleep", "600"])?;
        // Before that its parent may not have said yet what being killed means.
        asked(
            &task,
            "until grep -qsx sleep /proc/[0-9]*/comm; do sleep 0.1; done",
        )?;
        image_init::ends_with_the_programs_parent(&task, "application")?;
        Ok(())
    });
}

#[test]
fn a_terminal_is_the_programs_alone() {
    on_systemd(|bench| {
        image_init::a_terminal_is_the_programs(&rich(bench, "tty"), "systemd")?;
        Ok(())
    });
}

#[test]
fn the_program_is_started_again_where_that_is_asked_for() {
    on_systemd(|bench| image_init::is_started_again(|name| rich(bench, name)));
}
