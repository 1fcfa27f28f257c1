//! Containers on a snapshotter that is a process of its own, behind every containerd.

use integration::{
    config::Config,
    conformance::{CASES, Snapshots, Target},
    containerd::Containerd,
    ctr::Ctr,
    images::Image,
    proxy::Proxy,
    runtime::Runtime,
    versions::{Installed, Version},
};

use super::{failures, faults::Fault, overlayfs_of, relay::Relay};

/// A label that reaches snapshotters behind a socket; others do not.
const SIZE: &str = "containerd.io/snapshot/max-size";

/// The containerd behind knows of nothing that refers to its snapshots, as root labels do not reach
/// it. It must never collect garbage: not at its start, not after mutations, and not after deletions,
/// which it would do every second if their threshold were 0.
const NO_COLLECTION: &str = "\n[plugins.\"io.containerd.gc.v1.scheduler\"]\n  \
    startup_delay = \"0s\"\n  mutation_threshold = 0\n  deletion_threshold = 1000000\n";

/// A containerd, a relay in front of it, and what a containerd in front of that is to know.
fn serve(installed: &Installed) -> (Containerd, Relay, Proxy) {
    let config = Config {
        extra: NO_COLLECTION.to_owned(),
        is_in_memory: true,
        ..Config::with_images(&[])
    };
    let behind = Containerd::start(installed, &config).unwrap();
    let relay = Relay::start(&behind, Fault::Nothing);
    let proxy = Proxy {
        name: "relay".to_owned(),
        address: relay.target().socket,
        root: behind.directories.root(),
        maps_layers: false,
    };
    (behind, relay, proxy)
}

#[test]
fn containers_of_every_containerd_run_on_a_snapshotter_behind_a_socket() {
    let all = Version::available().unwrap();
    let (behind, relay, proxy) = serve(&all[0]);
    for installed in &all {
        let config = Config {
            proxies: vec![proxy.clone()],
            ..Config::with_images(&[Image::Busybox])
        };
        let containerd = Containerd::start(installed, &config).unwrap();
        let ctr = Ctr::of(&containerd);
        let size = format!("1000{}", installed.version.config_version());
        let task = ctr
            .container("behind", Image::Busybox, Runtime::Runc)
            .snapshotter("relay")
            .snapshotter_label(SIZE, &size)
            .detach(&["sleep", "1000"])
            .unwrap();
        let written = task.output("echo here > /file && cat /file").unwrap();
        assert_eq!(written, "here\n");

        // It is where it should be, and the label came through.
        let snapshots = Snapshots::connect(&overlayfs_of(&behind)).unwrap();
        let filter = format!("labels.\"{SIZE}\"=={size},kind==active");
        let found = snapshots.list(&[filter]).unwrap();
        let names: Vec<_> = found.iter().map(|info| info.name.as_str()).collect();
        assert!(
            matches!(names[..], [name] if name.ends_with("/behind")),
            "{names:?}"
        );
        // A label that is changed comes through, too, as it happens.
        let label = format!("{SIZE}=7");
        ctr.snapshots("relay", &["label", "behind", &label])
            .unwrap()
            .success()
            .unwrap();
        let labels = snapshots.stat(&found[0].name).unwrap().labels;
        assert_eq!(labels.get(SIZE).map(String::as_str), Some("7"));

        assert_eq!(task.kill_and_remove().unwrap(), 137);
        containerd.finish().unwrap();
    }
    drop(relay);
    behind.finish().unwrap();
}

#[test]
fn the_suite_passes_through_two_containerds() {
    let all = Version::available().unwrap();
    let (behind, relay, proxy) = serve(&all[0]);
    let config = Config {
        proxies: vec![proxy],
        ..Config::with_images(&[])
    };
    let containerd = Containerd::start(all.last().unwrap(), &config).unwrap();
    let target = Target {
        snapshotter: "relay".to_owned(),
        ..overlayfs_of(&containerd)
    };
    let failures = failures(&target, &CASES);
    assert!(failures.is_empty(), "{failures:#?}");
    let log = std::fs::read_to_string(behind.log_file()).unwrap();
    assert!(!log.contains("garbage collected"), "{NO_COLLECTION}");
    containerd.finish().unwrap();
    drop(relay);
    behind.finish().unwrap();
}
