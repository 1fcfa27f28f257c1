//! nerdctl as a user types it, with runlxc on every containerd: one-shot, detached, bridge, published port.

#![expect(clippy::panic, reason = "a test's own functions")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use integration::{
    config::Config,
    containerd::Containerd,
    images::Image,
    nerdctl::Nerdctl,
    network::NetworkNamespace,
    process::Running,
    runtime::Runtime,
    skip::skip,
    versions::{Availability, Version, nerdctl, nerdctl_2},
    wait::{SOON, Sources, until},
};

/// One instance per containerd, in a network of its own; nothing may be left at the end.
fn check(
    name: &str,
    behaviour: impl Fn(&Nerdctl<'_>, &Containerd, &NetworkNamespace) -> Result<()>,
) {
    check_with(name, (nerdctl(), &[Image::Busybox]), behaviour);
}

/// The same, by that nerdctl and with those images.
fn check_with(
    name: &str,
    (nerdctl, images): (Result<Availability<PathBuf>>, &[Image]),
    behaviour: impl Fn(&Nerdctl<'_>, &Containerd, &NetworkNamespace) -> Result<()>,
) {
    let run = move || -> Result<()> {
        Runtime::Runlxc
            .binaries()
            .context("the runtime under test is missing")?;
        let binary = match nerdctl? {
            Availability::Ready(binary) => binary,
            Availability::Absent(reason) => {
                skip(name, &reason);
                return Ok(());
            }
        };
        for installed in Version::available()? {
            let version = installed.version;
            let network = NetworkNamespace::new()?;
            let mut config = Config::with_images(images);
            config.network = Some(network.path());
            let containerd = Containerd::start(&installed, &config)?;
            let nerdctl = Nerdctl::new(binary.clone(), &containerd, &network)?;
            behaviour(&nerdctl, &containerd, &network)
                .with_context(|| format!("containerd {version}: {}", containerd.log_tail()))?;
            containerd
                .finish()
                .with_context(|| format!("containerd {version}, at the end"))?;
        }
        Ok(())
    };
    if let Err(error) = run() {
        panic!("{error:?}");
    }
}

fn image() -> String {
    Image::Busybox.reference()
}

#[test]
fn a_one_shot_run_gives_output_and_exit_code() {
    check("one-shot", |nerdctl, _, _| {
        let words = [
            "--rm",
            "--net",
            "none",
            &image(),
            "sh",
            "-c",
            "echo out; echo err >&2; exit 5",
        ];
        let ended = nerdctl.run(Runtime::Runlxc, "one", &words)?.with_code(5)?;
        ensure!(
            ended.stdout() == "out\n" && ended.stderr().contains("err"),
            "{ended}"
        );
        Ok(())
    });
}

#[test]
fn environment_user_and_volumes_reach_the_program() {
    check("env, user, volume", |nerdctl, containerd, _| {
        let shared = containerd.work().join("shared");
        fs::create_dir(&shared)?;
        fs::write(shared.join("in"), "from the host")?;
        let volume = format!("{}:/shared", shared.display());
        let script = "cat /shared/in; echo; id -u; id -g; echo $COLOUR";
        let words = [
            "--rm",
            "--net",
            "none",
            "-e",
            "COLOUR=blue",
            "-u",
            "65534:65533",
            "-v",
            &volume,
            &image(),
            "sh",
            "-c",
            script,
        ];
        nerdctl
            .run(Runtime::Runlxc, "given", &words)?
            .success()?
            .printing("from the host\n65534\n65533\nblue")?;
        let words = [
            "--rm",
            "--net",
            "none",
            "-v",
            &volume,
            &image(),
            "sh",
            "-c",
            "echo back > /shared/out",
        ];
        nerdctl.run(Runtime::Runlxc, "back", &words)?.success()?;
        ensure!(
            fs::read_to_string(shared.join("out"))? == "back\n",
            "the host sees what was written"
        );
        Ok(())
    });
}

#[test]
fn memory_and_cpu_limits_are_the_kernel_s() {
    check("limits", |nerdctl, _, _| {
        // cgroup v1's files by their names in the container; this machine's guests cover v2.
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes \
             /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us";
        let words = [
            "--rm",
            "--net",
            "none",
            "--memory",
            "64m",
            "--cpus",
            "0.5",
            &image(),
            "sh",
            "-c",
            script,
        ];
        nerdctl
            .run(Runtime::Runlxc, "limited", &words)?
            .success()?
            .printing("67108864\n50000\n100000")?;
        Ok(())
    });
}

#[test]
fn a_detached_container_is_execed_into_logged_stopped_and_removed() {
    check("detached", |nerdctl, _, _| {
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 1000 & wait; done";
        let words = ["-d", "--net", "none", &image(), "sh", "-c", script];
        nerdctl.run(Runtime::Runlxc, "service", &words)?.success()?;
        nerdctl
            .call(&["exec", "service", "sh", "-c", "exit 3"])?
            // nerdctl 1.7 names the code and exits with 1.
            .failing_with("exec failed with exit code 3")?;
        nerdctl
            .call(&["exec", "-e", "A=b", "service", "sh", "-c", "echo $A"])?
            .success()?
            .printing("b")?;
        logs_come(nerdctl, "service", "up")?;
        nerdctl.call(&["stop", "-t", "20", "service"])?.success()?;
        logs_come(nerdctl, "service", "bye")?;
        let inspected = nerdctl.call(&["inspect", "--format", "{{.State.ExitCode}}", "service"])?;
        inspected.success()?.printing("7")?;
        nerdctl.call(&["rm", "service"])?.success()?;
        Ok(())
    });
}

#[test]
fn a_published_port_on_a_bridge_answers() {
    check("bridge", |nerdctl, _, network| {
        let script =
            "mkdir -p /www; echo hello from inside > /www/index.html; httpd -f -p 80 -h /www";
        let words = ["-d", "-p", "8080:80", &image(), "sh", "-c", script];
        nerdctl.run(Runtime::Runlxc, "web", &words)?.success()?;
        let inspected = nerdctl.call(&[
            "inspect",
            "--format",
            "{{.NetworkSettings.IPAddress}}",
            "web",
        ])?;
        let address = inspected.success()?.stdout();
        let (subnet, _) = address.trim().rsplit_once('.').context("an address")?;
        for place in [
            format!("{}/80", address.trim()),
            // The bridge's own address, to which the port is published.
            format!("{subnet}.1/8080"),
        ] {
            until(&format!("{place} answers"), SOON, Sources::none(), || {
                // Neither curl nor wget is on every machine; bash speaks TCP.
                let script = format!(
                    "exec 3<>/dev/tcp/{place} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
                );
                let mut fetch = network.command("bash");
                let fetched = Running::start(fetch.args(["-c", &script]))?;
                let fetched = fetched.finish(Duration::from_secs(10))?;
                Ok(fetched
                    .stdout()
                    .ends_with("hello from inside\n")
                    .then_some(()))
            })?;
        }
        nerdctl.call(&["rm", "-f", "web"])?.success().map(drop)
    });
}

/// nerdctl has `--annotation` from 2.0 on; this older one asks as PouchContainer did.
#[test]
fn pouchs_variables_make_rich_containers() {
    let images = [Image::Busybox, Image::DebianSystemd];
    check_with("rich", (nerdctl(), &images), |nerdctl, _, _| {
        let (busybox, debian) = (image(), Image::DebianSystemd.reference());
        let run = |name, rest: &[&str]| {
            let rich = ["--net", "none", "-e", "rich_mode=true"];
            nerdctl.run(Runtime::Runlxc, name, &[&rich, rest].concat())
        };
        let script = "cat /proc/1/comm; exit 3";
        run("mini", &["--rm", &busybox, "sh", "-c", script])?
            .with_code(3)?
            .printing("runlxc-init")?;
        let systemd = ["-e", "rich_mode_launch_manner=systemd"];
        let script =
            "trap 'exit 6' TERM; cat /proc/1/comm; id -un; while :; do sleep 1 & wait; done";
        let words = ["-d", "-u", "daemon", &debian, "sh", "-c", script];
        run("whole", &[&systemd[..], &words].concat())?.success()?;
        logs_come(nerdctl, "whole", "systemd")?;
        logs_come(nerdctl, "whole", "daemon")?;
        // By its status: nerdctl may end before it has passed on what a quick exec says.
        let is_active = ["systemctl", "is-active", "pouch-application"];
        nerdctl
            .call(&[&["exec", "whole"], &is_active[..]].concat())?
            .success()?;
        nerdctl.call(&["stop", "-t", "50", "whole"])?.success()?;
        let inspected = nerdctl.call(&["inspect", "--format", "{{.State.ExitCode}}", "whole"])?;
        inspected.success()?.printing("6")?;
        nerdctl.call(&["rm", "whole"])?.success()?;
        let wrong = ["-e", "rich_mode_launch_manner=system"];
        run("wrong", &[&wrong[..], &["--rm", &busybox, "true"]].concat())?
            .failing_with("the nearest is systemd")?;
        Ok(())
    });
}

/// A container by annotations, and what its program is to see of them.
struct Annotated {
    image: Image,
    /// Without their prefix.
    annotations: &'static [&'static str],
    /// Lines of its output, the last one when it stops.
    lines: &'static [&'static str],
}

const ANNOTATED: [Annotated; 3] = [
    Annotated {
        image: Image::DebianSystemd,
        annotations: &["mode=systemd", "user=daemon", "services=cron,rsyslog,ssh"],
        lines: &["systemd as daemon with a b", "cron", "rsyslogd", "sshd"],
    },
    Annotated {
        image: Image::DebianSysvinit,
        annotations: &["mode=sbin-init", "user=daemon", "services=cron"],
        lines: &["init as daemon with a b", "cron"],
    },
    Annotated {
        image: Image::Busybox,
        annotations: &[
            "mode=dumb-init",
            "services=web",
            "service.web=sh:exec httpd -f -p 80",
            "service.web.ready=port:80",
        ],
        lines: &["runlxc-init as root with a b", "httpd"],
    },
];

/// Says who it is and what runs beside it: systemd starts the image's services after it, too.
const SHOWN: &str = "trap 'echo bye; exit 6' TERM; \
    echo $(cat /proc/1/comm) as $(id -un 2>/dev/null || echo root) with $COLOURS; \
    for service in \"$@\"; do \
        until grep -qx $service /proc/[0-9]*/comm 2>/dev/null; do sleep 0.1; done; echo $service; \
    done; while :; do sleep 1 & wait; done";

/// Hooks as scripts; the image of systemd has no keys for its sshd.
fn hooks(directory: &Path) -> Result<()> {
    let keys = "[ ! -e /usr/sbin/sshd ] || ssh-keygen -A >/dev/null";
    for (name, action) in [("prestart", keys), ("poststop", "true")] {
        let path = directory.join(format!("{name}.sh"));
        fs::write(
            &path,
            format!("#!/bin/sh\n{action}\necho {name} >>/opt/ops/hooks\n"),
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[test]
fn annotations_make_rich_containers() {
    let images = ANNOTATED.each_ref().map(|one| one.image);
    check_with(
        "annotations",
        (nerdctl_2(), &images),
        |nerdctl, containerd, _| {
            for one in &ANNOTATED {
                let operator = containerd.work().join(one.image.key());
                fs::create_dir(&operator)?;
                hooks(&operator)?;
                is_rich(nerdctl, one, &operator).with_context(|| one.image.reference())?;
            }
            Ok(())
        },
    );
}

fn is_rich(nerdctl: &Nerdctl<'_>, one: &Annotated, operator: &Path) -> Result<()> {
    let name = one.image.key();
    let volume = format!("{}:/opt/ops", operator.display());
    let hooks = [
        "prestart=/opt/ops/prestart.sh",
        "poststop=/opt/ops/poststop.sh",
    ];
    let annotations: Vec<_> = [one.annotations, &hooks]
        .concat()
        .into_iter()
        .map(|rest| format!("org.pouch.rich.{rest}"))
        .collect();
    let mut words = vec!["-d", "--net", "none", "-e", "COLOURS=a b", "-v", &volume];
    for annotation in &annotations {
        words.extend(["--annotation", annotation]);
    }
    let reference = one.image.reference();
    words.extend([&reference, "sh", "-c", SHOWN, "sh"]);
    words.extend(&one.lines[1..]);
    nerdctl.run(Runtime::Runlxc, &name, &words)?.success()?;
    for line in one.lines {
        logs_come(nerdctl, &name, line)?;
    }
    let said = || fs::read_to_string(operator.join("hooks"));
    ensure!(said()? == "prestart\n", "{:?}", said());
    nerdctl.call(&["stop", "-t", "50", &name])?.success()?;
    logs_come(nerdctl, &name, "bye")?;
    let inspected = nerdctl.call(&["inspect", "--format", "{{.State.ExitCode}}", &name])?;
    inspected.success()?.printing("6")?;
    nerdctl.call(&["rm", &name])?.success()?;
    ensure!(said()? == "prestart\npoststop\n", "{:?}", said());
    Ok(())
}

/// The logging process writes after the container does.
fn logs_come(nerdctl: &Nerdctl<'_>, name: &str, expected: &str) -> Result<()> {
    until(
        &format!("the log of {name} has {expected:?}"),
        SOON,
        Sources::none(),
        || {
            let logs = nerdctl.call(&["logs", name])?.success()?;
            Ok(logs
                .stdout()
                .lines()
                .any(|line| line == expected)
                .then_some(()))
        },
    )
}
