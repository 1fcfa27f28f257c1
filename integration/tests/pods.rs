//! Pods through CRI with runlxc on every containerd: sandbox, containers, exec, logs, stats, one shim per pod.

use std::fs;

use anyhow::{Result, ensure};
use integration::{
    cri::{Container, Pod, PodNetwork},
    images::Image,
    node::{self, Node, shell},
    runtime::Runtime,
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
        let pod = node.pod("life", PodNetwork::Own)?;
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
                    ("services", "cron"),
                    ("prestart", "sh:cat /proc/1/comm >/var/before"),
                ]
                .map(|(key, value)| (format!("org.pouch.rich.{key}"), value.to_owned()))
                .to_vec(),
                ..node.pod("rich", PodNetwork::Own)?
            };
            let pod_id = cri.run_pod(&pod)?;
            let script = "trap 'echo bye; exit 5' TERM; systemctl is-active cron; id -un; \
                      while :; do sleep 1 & wait; done";
            let shop = Container {
                image: Image::DebianSystemd.reference(),
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
            cri.stop(&id, 60)?;
            has("bye")?;
            let status = cri.status(&id)?;
            ensure!(status.exit_code == 5, "{status:?}");
            cri.remove_pod(&pod_id)
        },
    );
}
