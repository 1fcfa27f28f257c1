//! Pods through CRI with runlxc on every containerd: sandbox, containers, exec, logs, stats, one shim per pod.

#![expect(clippy::panic, reason = "a test's own functions")]

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    config::{Config, Cri as CriConfig, CriOptions},
    containerd::Containerd,
    cri::{Container, Cri, Pod, PodNetwork},
    ctr::Ctr,
    images::Image,
    network::{CNI_PLUGINS, NetworkNamespace, bridge_list},
    process::{command, output_of},
    runtime::Runtime,
    snapshotter::{Setup, Snapshotter},
    versions::Version,
    wait::{SOON, Sources, until},
};

/// A Debian takes a busy machine its time.
const IMPORT: Duration = Duration::from_secs(300);

struct Node<'a> {
    cri: Cri,
    containerd: &'a Containerd,
}

impl Node<'_> {
    fn pod(&self, name: &str, network: PodNetwork) -> Result<Pod> {
        let log_directory = self.containerd.work().join(name);
        fs::create_dir(&log_directory)?;
        Ok(Pod {
            name: name.to_owned(),
            handler: Runtime::Runlxc.to_string(),
            network,
            log_directory,
            // Below the instance's tag, so that the census finds what is left of it.
            cgroup_parent: format!("/{}", self.containerd.namespace),
            annotations: Vec::new(),
        })
    }
}

fn shell(name: &str, script: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Image::Busybox.reference(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..Container::default()
    }
}

fn check(behaviour: impl Fn(&Node<'_>) -> Result<()>) {
    check_on(Image::Busybox, || Ok(None), behaviour);
}

/// With that image, and roots made by that snapshotter, or by containerd's own.
fn check_on(
    image: Image,
    snapshotter: impl Fn() -> Result<Option<Snapshotter>>,
    behaviour: impl Fn(&Node<'_>) -> Result<()>,
) {
    let run = || -> Result<()> {
        Runtime::Runlxc
            .binaries()
            .context("the runtime under test is missing")?;
        for installed in Version::available()? {
            let version = installed.version;
            let network = NetworkNamespace::new()?;
            let temp = tempfile::tempdir()?;
            let list = bridge_list("pods", "pods0", "10.210.0.0/24", &temp.path().join("ipam"));
            fs::write(temp.path().join("10-pods.conflist"), list)?;
            // CRI keeps its images in the namespace k8s.io.
            let mut config = Config::with_images(&[]);
            config.network = Some(network.path());
            // Images are unpacked anew, and a disk takes most of a minute for a Debian.
            config.is_in_memory = true;
            let snapshotter = snapshotter()?;
            config.proxies = snapshotter.iter().map(Snapshotter::proxy).collect();
            let roots = config
                .proxies
                .first()
                .map_or("overlayfs", |proxy| &proxy.name);
            config.cri = CriConfig::On(CriOptions {
                default_runtime: Runtime::Runlxc,
                sandbox_image: Image::Pause.reference(),
                cni_plugins: CNI_PLUGINS.to_owned(),
                cni_networks: temp.path().display().to_string(),
                snapshotter: roots.to_owned(),
            });
            let containerd = Containerd::start(&installed, &config)?;
            for image in [image, Image::Pause] {
                let mut import = command(&containerd.installed.ctr);
                import.arg("--address").arg(containerd.address());
                import.args(["--namespace", "k8s.io", "images", "import"]);
                output_of(import.arg(image.archive()?), IMPORT)?;
            }
            let node = Node {
                cri: Cri::connect(&containerd.address())?,
                containerd: &containerd,
            };
            behaviour(&node)
                .with_context(|| format!("containerd {version}: {}", containerd.log_tail()))?;
            drop(node);
            Ctr::of(&containerd).collect_garbage()?;
            containerd
                .finish()
                .with_context(|| format!("containerd {version}, at the end"))?;
            snapshotter.map_or(Ok(()), Snapshotter::finish)?;
        }
        Ok(())
    };
    if let Err(error) = run() {
        panic!("{error:?}");
    }
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
    check_on(Image::Busybox, limited, |node| {
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
    check_on(
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
