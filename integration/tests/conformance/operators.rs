//! snapshotter-quota: what operators do and see through containerd, and by the command beside it.

use std::fs::{self, File};

use integration::{
    config::Config,
    conformance::{Snapshots, Target, mount_all},
    containerd::Containerd,
    ctr::Ctr,
    disk::Disk,
    event_stream::EventStream,
    images::Image,
    process::{Running, command, output_of},
    runtime::{Runtime, built},
    snapshotter::{Setup, Snapshotter},
    versions::Version,
    wait::SOON,
};
use prost_types::{Struct, value::Kind};
use proto::Message;

use super::DISK_BYTES;

/// Memory is a back end like others, and needs no disk.
const CONFIGURATION: &str = "[backend]\nkind = \"tmpfs\"\n";

const CONTAINER: &str = "watched";

/// Runs `snapshotter-quota` as an operator does.
fn operate(snapshotter: &Snapshotter, words: &[&str]) -> String {
    let mut ours = command(built("snapshotter-quota").unwrap());
    ours.arg("--address").arg(snapshotter.address()).args(words);
    output_of(&mut ours, SOON).unwrap()
}

/// Fills the container; containerd's stream tells of it.
fn check_event(containerd: &Containerd, fill: impl FnOnce()) {
    let topic = "/snapshotter-quota/limit";
    let mut events = EventStream::of_topic(&containerd.address(), topic).unwrap();
    fill();
    let event = events.wait_for_next().unwrap();
    assert_eq!(event.topic, topic);
    assert_eq!(event.namespace, containerd.namespace);
    let told = event.event.unwrap();
    let fields = Struct::decode(told.value.as_slice()).unwrap().fields;
    let [what, key, limit] =
        ["what", "key", "limit_bytes"].map(|name| fields[name].kind.clone().unwrap());
    assert_eq!(what, Kind::StringValue("full".to_owned()), "{fields:?}");
    let is_ours = matches!(key, Kind::StringValue(key) if key.ends_with(CONTAINER));
    assert!(is_ours, "{fields:?}");
    assert_eq!(limit, Kind::NumberValue(f64::from(32 << 20)));
}

fn check(containerd: &Containerd, snapshotter: &Snapshotter) {
    let ctr = Ctr::of(containerd);
    let task = ctr
        .container(CONTAINER, Image::Busybox, Runtime::Runlxc)
        .snapshotter("quota")
        .snapshotter_label("containerd.io/snapshot/max-size", "33554432")
        .detach(&["sleep", "1000"])
        .unwrap();
    let write = ["dd", "if=/dev/zero", "of=/file", "bs=1M", "count=48"];
    check_event(containerd, || {
        task.exec(&write).unwrap().with_code(1).unwrap();
    });
    let listed = operate(snapshotter, &["ls"]);
    let line = listed.lines().find(|line| line.contains(CONTAINER));
    assert!(line.is_some_and(|line| line.contains("32M")), "{listed}");

    operate(snapshotter, &["set", CONTAINER, "64m"]);
    task.exec(&write).unwrap().success().unwrap();
    // containerd's own labels agree with what holds.
    let target = Target {
        namespace: Some(containerd.namespace.clone()),
        ..Target::proxy(containerd.address(), "quota")
    };
    let info = Snapshots::connect(&target).unwrap().stat(CONTAINER);
    let labels = info.unwrap().labels;
    assert_eq!(labels["containerd.io/snapshot/max-size"], "67108864");

    let doctor = operate(snapshotter, &["doctor"]);
    assert!(doctor.contains("has this snapshotter"), "{doctor}");
    assert_eq!(task.kill_and_remove().unwrap(), 137);
    ctr.collect_garbage().unwrap();
}

#[test]
fn operators_see_a_full_container_and_give_it_room_through_every_containerd() {
    for installed in Version::available().unwrap() {
        let setup = Setup {
            is_activated: true,
            ..Setup::quota(CONFIGURATION).unwrap()
        };
        let mut snapshotter = Snapshotter::start(setup).unwrap();
        let config = Config {
            proxies: vec![snapshotter.proxy()],
            ..Config::with_images(&[Image::Busybox])
        };
        let containerd = Containerd::start(&installed, &config).unwrap();
        let socket = containerd.address();
        let with_socket = format!("containerd = {socket:?}\n{CONFIGURATION}");
        snapshotter.stop().unwrap();
        snapshotter.start_again_with(&with_socket).unwrap();
        check(&containerd, &snapshotter);
        containerd.finish().unwrap();
        snapshotter.finish().unwrap();
    }
}

/// What `ls` shows as the limit of that snapshot.
fn shown_limit(snapshotter: &Snapshotter, name: &str) -> String {
    let listed = operate(snapshotter, &["ls"]);
    let line = listed.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(2).unwrap().to_owned()
}

/// Whether that many MiB can be written to a snapshot without a parent; they are deleted again.
fn can_write(snapshots: &Snapshots, key: &str, mebibytes: usize) -> bool {
    let point = tempfile::tempdir().unwrap();
    let mounted = mount_all(&snapshots.mounts(key).unwrap(), point.path()).unwrap();
    let file = point.path().join("file");
    let written = fs::write(&file, vec![1; mebibytes << 20]);
    fs::remove_file(&file).unwrap();
    // What was deleted counts until btrfs has committed that.
    nix::unistd::syncfs(File::open(point.path()).unwrap()).unwrap();
    mounted.unmount().unwrap();
    written.is_ok()
}

#[test]
fn members_of_a_group_share_the_limit_that_was_set_last() {
    let disk = Disk::sparse("btrfs", DISK_BYTES, &["-q"], "").unwrap();
    let setup = Setup {
        root: Some(disk.path().join("root")),
        ..Setup::quota("[backend]\nkind = \"btrfs\"\n").unwrap()
    };
    let snapshotter = Snapshotter::start(setup).unwrap();
    let snapshots = Snapshots::connect(&snapshotter.target()).unwrap();
    let labels = |size: Option<&str>| {
        let group = Some(("containerd.io/snapshot/quota.group", "web"));
        let size = size.map(|size| ("containerd.io/snapshot/max-size", size));
        let both = group.into_iter().chain(size);
        both.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let set = |key: &str, size: Option<&str>| {
        let mut info = snapshots.stat(key).unwrap();
        info.labels = labels(size);
        snapshots.update(info, &["labels"]).unwrap();
    };
    let check = |mebibytes: usize| {
        for key in ["a", "b", "c"] {
            assert_eq!(shown_limit(&snapshotter, key), format!("{mebibytes}M"));
            assert!(
                can_write(&snapshots, key, mebibytes - 4),
                "{key} {mebibytes}"
            );
            assert!(
                !can_write(&snapshots, key, mebibytes + 4),
                "{key} {mebibytes}"
            );
        }
    };
    for (key, size) in [("a", Some("20m")), ("b", Some("40m")), ("c", None)] {
        snapshots.prepare(key, "", labels(size)).unwrap();
    }
    check(40);
    // The same that it was given first, and another has set another since.
    set("a", Some("20m"));
    check(20);
    set("b", Some("60m"));
    check(60);
    // One without a limit of its own leaves the others theirs.
    set("b", None);
    check(20);
    snapshotter.kill_and_restart().unwrap();
    let snapshots_again = Snapshots::connect(&snapshotter.target()).unwrap();
    assert!(!can_write(&snapshots_again, "b", 24));

    let mut lift = command(built("snapshotter-quota").unwrap());
    lift.arg("--address").arg(snapshotter.address());
    lift.args(["lift", "a", "--for", "60s"]);
    let refused = Running::start(&mut lift).unwrap().finish(SOON).unwrap();
    assert!(refused.stderr().contains("the group"), "{refused}");
    for key in ["a", "b", "c"] {
        snapshots_again.remove(key).unwrap();
    }
    snapshotter.finish().unwrap();
}
