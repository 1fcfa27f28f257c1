//! Pods through CRI with runlxc on every containerd: sandbox, containers, exec, logs, stats, one shim per pod.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use integration::{
    cgroup::{IDLE, expect},
    cri::{Access, Container, Cri, Pod, PodNetwork},
    images::Image,
    node::{self, Node, shell},
    process::{Running, command, output_of},
    runtime::{Runtime, built},
    snapshotter::{Setup, Snapshotter},
    wait::{SOON, Sources, until},
};

fn check(behaviour: impl Fn(&Node<'_>) -> Result<()>) {
    node::check(Runtime::Runlxc, behaviour);
}

#[test]
fn a_pod_runs_containers_execs_logs_and_reports_exit_codes() {
    check(|node| {
        let cri = &node.cri;
        let slow = ("org.pouch.net.egress".to_owned(), "20mbit".to_owned());
        let pod = Pod {
            annotations: vec![slow],
            ..node.pod("life", PodNetwork::Own)?
        };
        let pod_id = cri.run_pod(&pod)?;
        let address = cri.pod_address(&pod_id)?;
        ensure!(
            address.starts_with("10.210.0."),
            "the pod's address is {address:?}"
        );

        let service = shell("service", "echo started; sleep 100000");
        let service_id = cri.create(&pod, &pod_id, &service)?;
        cri.start(&service_id)?;
        let ran = cri.exec(
            &service_id,
            &["sh", "-c", "hostname; ip -4 addr show eth0; exit 4"],
        )?;
        ensure!(ran.code == 4 && ran.stdout.starts_with("life\n"), "{ran:?}");
        ensure!(
            ran.stdout.contains(&address),
            "the container has the pod's network: {ran:?}"
        );
        network_and_priority_change(cri, &service_id)?;
        let log = pod.log_directory.join(service.log_path());
        until("the log has the first line", SOON, Sources::none(), || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains(" stdout F started\n").then_some(()))
        })?;
        let stats = cri.stats(&service_id)?;
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
        ensure!(
            memory.is_some_and(|bytes| bytes.value > 0),
            "memory of the container: {memory:?}"
        );

        let job = cri.create(&pod, &pod_id, &shell("job", "exit 9"))?;
        cri.start(&job)?;
        until("the job has exited", SOON, Sources::none(), || {
            Ok(cri.has_exited(&job)?.then_some(()))
        })?;
        let status = cri.status(&job)?;
        ensure!(status.exit_code == 9, "{status:?}");

        cri.stop(&service_id, 1)?;
        ensure!(
            cri.status(&service_id)?.exit_code == 137,
            "{:?}",
            cri.status(&service_id)?
        );
        cri.remove(&job)?;
        cri.remove(&service_id)?;
        cri.remove_pod(&pod_id)
    });
}

/// In a pod whose traffic is limited.
fn network_and_priority_change(cri: &Cri, id: &str) -> Result<()> {
    let pid = cri.pid(id)?;
    let limits = || {
        let mut tc = command("nsenter");
        tc.arg(format!("--net=/proc/{pid}/ns/net"));
        output_of(tc.args(["tc", "qdisc"]), SOON)
    };
    ensure!(limits()?.contains("rate 20Mbit"), "{}", limits()?);
    let change = |annotations: &[&str]| {
        let mut update = command(built("runlxc")?);
        update.args(["--root", "/run/containerd/runlxc/k8s.io", "update", id]);
        for annotation in annotations {
            update.args(["--annotation", annotation]);
        }
        Running::start(&mut update)?.finish(SOON)
    };
    // CRI hands on no annotations of an update.
    change(&[
        "org.pouch.net.egress=unlimited",
        "org.pouch.net.ingress=40mbit",
        "org.pouch.priority=best-effort",
    ])?
    .success()?;
    let now = limits()?;
    ensure!(
        !now.contains("20Mbit") && now.contains("rate 40Mbit"),
        "{now}"
    );
    expect(i32::try_from(pid)?, IDLE, "1", "1")?;
    change(&["org.pouch.priority=online"])?.success()?;
    expect(i32::try_from(pid)?, IDLE, "0", "0")?;
    let refused = change(&["org.pouch.rich.mode=systemd"])?;
    let why = "cannot change while a container runs";
    ensure!(
        refused.code() == 1 && refused.stderr().contains(why),
        "{refused}"
    );
    Ok(())
}

#[test]
fn containers_of_a_pod_share_one_shim_and_its_namespaces() {
    check(|node| {
        let cri = &node.cri;
        let pod = node.pod("shared", PodNetwork::Node)?;
        let pod_id = cri.run_pod(&pod)?;
        let mut ids = Vec::new();
        for name in ["a", "b"] {
            let id = cri.create(&pod, &pod_id, &shell(name, "sleep 100000"))?;
            cri.start(&id)?;
            ids.push(id);
        }
        let namespaces = |id: &str, kind: &str| -> Result<String> {
            Ok(cri
                .exec(id, &["readlink", &format!("/proc/self/ns/{kind}")])?
                .stdout)
        };
        ensure!(
            namespaces(&ids[0], "ipc")? == namespaces(&ids[1], "ipc")?,
            "one ipc namespace"
        );
        ensure!(
            namespaces(&ids[0], "mnt")? != namespaces(&ids[1], "mnt")?,
            "two mount namespaces"
        );
        let shims = integration::census::processes()?
            .into_values()
            .filter(|process| {
                process.command.contains(Runtime::Runlxc.shim())
                    && process
                        .command
                        .contains(&node.containerd.address().display().to_string())
            })
            .count();
        ensure!(shims == 1, "{shims} shims for one pod");
        cri.remove_pod(&pod_id)
    });
}

#[test]
fn limits_users_and_environment_of_a_pod_s_container_are_honoured() {
    check(|node| {
        let cri = &node.cri;
        let pod = node.pod("given", PodNetwork::Node)?;
        let pod_id = cri.run_pod(&pod)?;
        let mut container = shell("limited", "sleep 100000");
        container.memory_bytes = 48 << 20;
        container.user = Some(1234);
        container.envs = vec![("COLOUR".to_owned(), "green".to_owned())];
        let id = cri.create(&pod, &pod_id, &container)?;
        cri.start(&id)?;
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; id -u; echo $COLOUR";
        let ran = cri.exec(&id, &["sh", "-c", script])?;
        ensure!(ran.stdout == "50331648\n1234\ngreen\n", "{ran:?}");
        cri.remove_pod(&pod_id)
    });
}

#[test]
fn containers_of_pods_have_the_limits_that_the_snapshotter_was_configured_with() {
    let limited = || {
        let config = "[backend]\nkind = \"tmpfs\"\n[quota]\ndefault_size = \"32m\"\n";
        Snapshotter::start(Setup::quota(config)?).map(Some)
    };
    node::check_on(Runtime::Runlxc, Image::Busybox, limited, |node| {
        let cri = &node.cri;
        let pod = node.pod("limited", PodNetwork::Node)?;
        let pod_id = cri.run_pod(&pod)?;
        let id = cri.create(&pod, &pod_id, &shell("writer", "sleep 100000"))?;
        cri.start(&id)?;
        let write = "dd if=/dev/zero of=/file bs=1M count=";
        let ran = cri.exec(&id, &["sh", "-c", &format!("{write}48 2>&1")])?;
        ensure!(
            ran.code == 1 && ran.stdout.contains("No space left"),
            "{ran:?}"
        );
        let ran = cri.exec(&id, &["sh", "-c", &format!("{write}16 2>&1")])?;
        ensure!(ran.code == 0, "{ran:?}");
        // The kubelet evicts by this; containerd asks the snapshotter every ten seconds.
        until(
            "the usage is in the statistics",
            SOON,
            Sources::none(),
            || {
                let used = cri
                    .stats(&id)?
                    .writable_layer
                    .and_then(|layer| layer.used_bytes);
                Ok(used.filter(|used| used.value >= 16 << 20).map(drop))
            },
        )?;
        cri.remove_pod(&pod_id)
    });
}

/// What an image without keys of its own needs for logins by a key of the host's.
const PREPARED: &str = "sh:cat /proc/1/comm >/var/before && ssh-keygen -A >/dev/null && \
                        install -D -m 600 /keys/id.pub /root/.ssh/authorized_keys";

/// What a command prints that root runs by a login over the bridge.
fn by_ssh(node: &Node<'_>, key: &Path, address: &str, line: &str) -> Result<String> {
    let network = format!("--net=/proc/{}/ns/net", node.containerd.pid()?);
    until("one can log in", SOON, Sources::none(), || {
        let mut ssh = command("nsenter");
        ssh.arg(&network)
            .args(["ssh", "-q", "-F", "none", "-i"])
            .arg(key);
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg(format!("root@{address}")).arg(line);
        let ended = Running::start(&mut ssh)?.finish(SOON)?;
        // Until sshd listens.
        Ok((ended.code() == 0).then(|| ended.stdout()))
    })
}

#[test]
fn annotations_of_a_pod_make_its_containers_rich_and_not_its_sandbox() {
    node::check_on(
        Runtime::Runlxc,
        Image::DebianSystemd,
        || Ok(None),
        |node| {
            let cri = &node.cri;
            let pod = Pod {
                annotations: [
                    ("mode", "systemd"),
                    ("user", "daemon"),
                    ("services", "cron,ssh"),
                    ("prestart", PREPARED),
                ]
                .map(|(key, value)| (format!("org.pouch.rich.{key}"), value.to_owned()))
                .to_vec(),
                ..node.pod("rich", PodNetwork::Own)?
            };
            let pod_id = cri.run_pod(&pod)?;
            let script = "trap 'echo bye; exit 5' TERM; systemctl is-active cron; id -un; \
                      while :; do sleep 1 & wait; done";
            let keys = tempfile::tempdir()?;
            let key = keys.path().join("id");
            let mut generate = command("ssh-keygen");
            generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            output_of(generate.arg(&key), SOON)?;
            let shop = Container {
                image: Image::DebianSystemd.reference(),
                volumes: vec![(keys.path().to_owned(), "/keys".to_owned(), Access::Read)],
                ..shell("shop", script)
            };
            let id = cri.create(&pod, &pod_id, &shop)?;
            cri.start(&id)?;
            let log = pod.log_directory.join(shop.log_path());
            let has = |expected: &str| {
                let what = format!("the log has {expected:?}");
                until(&what, SOON, Sources::none(), || {
                    let text = fs::read_to_string(&log).unwrap_or_default();
                    let mut lines = text
                        .lines()
                        .filter_map(|line| line.split_once(" stdout F "));
                    Ok(lines.any(|(_, said)| said == expected).then_some(()))
                })
            };
            has("active")?;
            has("daemon")?;
            let ran = cri.exec(&id, &["sh", "-c", "cat /proc/1/comm /var/before"])?;
            ensure!(ran.stdout == "systemd\nrunlxc-init\n", "{ran:?}");
            let address = cri.pod_address(&pod_id)?;
            let inside = "cat /proc/1/comm; systemctl is-active cron pouch-application";
            let said = by_ssh(node, &key, &address, inside)?;
            ensure!(said == "systemd\nactive\nactive\n", "{said:?}");
            cri.stop(&id, 60)?;
            has("bye")?;
            let status = cri.status(&id)?;
            ensure!(status.exit_code == 5, "{status:?}");
            cri.remove_pod(&pod_id)
        },
    );
}

#[test]
fn annotations_of_a_pod_give_its_containers_the_images_own_sysvinit() {
    let no_snapshotter = || Ok(None);
    node::check_on(
        Runtime::Runlxc,
        Image::DebianSysvinit,
        no_snapshotter,
        |node| {
            let cri = &node.cri;
            let annotations = [
                ("mode", "sbin-init"),
                ("user", "daemon"),
                ("services", "cron"),
                ("prestart", "sh:cat /proc/1/comm >/var/before"),
                ("ready", "file:/tmp/up"),
            ];
            let pod = Pod {
                annotations: annotations
                    .map(|(key, value)| (format!("org.pouch.rich.{key}"), value.to_owned()))
                    .to_vec(),
                ..node.pod("rich", PodNetwork::Own)?
            };
            let pod_id = cri.run_pod(&pod)?;
            let script = "trap 'exit 5' TERM; : >/tmp/up; while :; do sleep 1 & wait; done";
            let shop = Container {
                image: Image::DebianSysvinit.reference(),
                ..shell("shop", script)
            };
            let id = cri.create(&pod, &pod_id, &shop)?;
            cri.start(&id)?;
            let look = "cat /proc/1/comm /var/before; stat -c %U /tmp/up; pgrep -x cron >/dev/null && \
                        echo cron; runlevel";
            let ran = cri.exec(&id, &["sh", "-c", look])?;
            ensure!(
                ran.stdout == "init\nrunlxc-init\ndaemon\ncron\nN 2\n",
                "{ran:?}"
            );
            cri.stop(&id, 60)?;
            let status = cri.status(&id)?;
            ensure!(status.exit_code == 5, "{status:?}");
            cri.remove_pod(&pod_id)
        },
    );
}
