//! snapshotter-quota: containers of every containerd and runtime on it, and the limits of what they write.

use std::{path::Path, time::Duration};

use integration::{
    config::Config,
    conformance::Snapshots,
    containerd::Containerd,
    ctr::{Ctr, Task},
    disk::Disk,
    guest::Series,
    images::Image,
    runtime::Runtime,
    skip::skip,
    snapshotter::{Setup, Snapshotter},
    versions::{Availability, Version},
};

use super::{DISK_BYTES, again_in_guest, is_in_guest};

/// containerd's own label for the size of what a container writes, in bytes.
const SIZE: &str = "containerd.io/snapshot/max-size";

const NO_SPACE: &str = "No space left on device";
const QUOTA_EXCEEDED: &str = "quota exceeded";

/// One back end, as a container sees it.
#[derive(Debug, Clone, Copy)]
struct BackEnd {
    kind: &'static str,
    /// The first limit. Images of xfs cannot be smaller than 300 MiB.
    mebibytes: u64,
    /// What a write beyond the limit is told.
    refusal: &'static str,
    /// Whether `df` shows the limit, and not the disk.
    is_shown: bool,
}

const BTRFS: BackEnd = BackEnd {
    kind: "btrfs",
    mebibytes: 32,
    refusal: QUOTA_EXCEEDED,
    is_shown: false,
};

const IMAGE: BackEnd = BackEnd {
    kind: "image",
    mebibytes: 320,
    refusal: NO_SPACE,
    is_shown: true,
};

const TMPFS: BackEnd = BackEnd {
    kind: "tmpfs",
    refusal: NO_SPACE,
    is_shown: true,
    ..BTRFS
};

const PROJECT_EXT4: BackEnd = BackEnd {
    kind: "prjquota",
    is_shown: true,
    ..BTRFS
};

const PROJECT_XFS: BackEnd = BackEnd {
    kind: "prjquota",
    ..TMPFS
};

const POOL: BackEnd = BackEnd {
    kind: "pool",
    ..TMPFS
};

/// Writes a file of that size; what dd says, and with what it ended.
fn write(task: &Task<'_>, mebibytes: u64) -> String {
    let dd = format!("dd if=/dev/zero of=/file bs=1M count={mebibytes} 2>&1; echo ended with $?");
    task.output(&dd).unwrap()
}

fn check_written(task: &Task<'_>, mebibytes: u64) {
    let said = write(task, mebibytes);
    assert!(said.contains("ended with 0"), "{mebibytes} MiB: {said}");
}

fn check_refused(task: &Task<'_>, mebibytes: u64, back_end: BackEnd) {
    let said = write(task, mebibytes);
    assert!(said.contains("ended with 1"), "{mebibytes} MiB: {said}");
    assert!(said.contains(back_end.refusal), "{back_end:?}: {said}");
}

/// `df` within a container: the limit, but for what a file system in an image needs for itself.
fn check_shown(task: &Task<'_>, mebibytes: u64) {
    let shown = task.output("df -P -k / | tail -n 1").unwrap();
    let size = shown.split_whitespace().nth(1).map(str::parse::<u64>);
    let size = size.unwrap().unwrap();
    let limit = mebibytes << 10;
    let is_limit = (limit * 4 / 5..=limit).contains(&size);
    assert!(is_limit, "of {limit} KiB: {shown}");
}

/// A limit that holds, is raised while the container runs, and outlives the daemon; and a container
/// that is full can be emptied, and removed.
fn run_limited(ctr: Ctr<'_>, snapshotter: &Snapshotter, back_end: BackEnd, runtime: Runtime) {
    let limit = back_end.mebibytes;
    let name = format!("limited-{runtime}");
    let container = ctr.container(&name, Image::Busybox, runtime);
    let task = container
        .snapshotter("quota")
        .snapshotter_label(SIZE, &(limit << 20).to_string())
        .detach(&["sleep", "1000"])
        .unwrap();
    if back_end.is_shown {
        check_shown(&task, limit);
    }
    check_refused(&task, limit * 3 / 2, back_end);

    let raised = format!("{SIZE}={}", limit << 21);
    let label = ["label", &name, &raised];
    ctr.snapshots("quota", &label).unwrap().success().unwrap();
    if back_end.is_shown {
        check_shown(&task, limit * 2);
    }
    check_written(&task, limit * 3 / 2);

    snapshotter.kill_and_restart().unwrap();
    check_written(&task, limit * 3 / 2);
    check_refused(&task, limit * 3, back_end);
    task.exec(&["rm", "/file"]).unwrap().success().unwrap();
    check_written(&task, limit);

    check_refused(&task, limit * 3, back_end);
    assert_eq!(task.kill_and_remove().unwrap(), 137);
}

/// Every containerd has a daemon of its own, below that directory where there is one.
fn check(back_end: BackEnd, directory: Option<&Path>) {
    for installed in Version::available().unwrap() {
        let setup = Setup {
            root: directory.map(|directory| directory.join(installed.version.line())),
            // Otherwise containerd, which connects anew a second later, leaves to another
            // collection what it could not remove.
            is_activated: true,
            ..Setup::quota(&format!("[backend]\nkind = \"{}\"\n", back_end.kind)).unwrap()
        };
        let snapshotter = Snapshotter::start(setup).unwrap();
        let config = Config {
            proxies: vec![snapshotter.proxy()],
            ..Config::with_images(&[Image::Busybox])
        };
        let containerd = Containerd::start(&installed, &config).unwrap();
        let ctr = Ctr::of(&containerd);
        for runtime in Runtime::ALL {
            run_limited(ctr, &snapshotter, back_end, runtime);
        }
        ctr.collect_garbage().unwrap();
        let snapshots = Snapshots::connect(&snapshotter.target()).unwrap();
        let left = snapshots.list(&["kind!=committed".to_owned()]).unwrap();
        assert!(left.is_empty(), "{left:?}");
        containerd.finish().unwrap();
        snapshotter.finish().unwrap();
    }
}

#[test]
fn containers_on_btrfs_have_limits_that_hold() {
    let disk = Disk::sparse("btrfs", DISK_BYTES, &["-q"], "").unwrap();
    check(BTRFS, Some(&disk.path()));
}

#[test]
fn containers_in_images_have_limits_that_hold() {
    check(IMAGE, None);
}

#[test]
fn containers_in_memory_have_limits_that_hold() {
    check(TMPFS, None);
}

/// In a guest, whose kernel has project quota, with the containerd of Debian 12.
#[test]
fn containers_under_project_quota_have_limits_that_hold() {
    if is_in_guest() {
        let project: &[&str] = &["-q", "-O", "project,quota"];
        // One at a time: the guest has little memory, in which they are.
        for (back_end, kind, mkfs, options) in [
            (PROJECT_EXT4, "ext4", project, "prjquota"),
            (PROJECT_XFS, "xfs", &["-q"], "prjquota"),
            (POOL, "ext4", &["-q"], ""),
        ] {
            let disk = Disk::sparse(kind, DISK_BYTES, mkfs, options).unwrap();
            check(back_end, Some(&disk.path()));
        }
        return;
    }
    let name = "conformance::limited::containers_under_project_quota_have_limits_that_hold";
    again_in_guest(Series::V6_1, name, Duration::from_secs(1200));
}

/// Containers in user namespaces share the layers of the image, whose files are theirs, and have
/// limits as others. ctr forgets the label there, so the limit is the configuration's.
#[test]
fn a_container_in_a_user_namespace_sees_its_image_as_its_own_and_has_a_limit() {
    let installed = match Version::V2_4.install().unwrap() {
        Availability::Ready(installed) => installed,
        Availability::Absent(why) => return skip("mapped layers of containerd 2.4", &why),
    };
    let disk = Disk::sparse("btrfs", DISK_BYTES, &["-q"], "").unwrap();
    let config = "[backend]\nkind = \"btrfs\"\n[quota]\ndefault_size = \"32m\"\n";
    let snapshotter = Snapshotter::start(Setup {
        root: Some(disk.path().join("root")),
        ..Setup::quota(config).unwrap()
    })
    .unwrap();
    let config = Config {
        proxies: vec![snapshotter.proxy()],
        ..Config::with_images(&[Image::Busybox])
    };
    let containerd = Containerd::start(&installed, &config).unwrap();
    let ctr = Ctr::of(&containerd);
    let maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let script = "stat -c %u:%g /bin/busybox && touch /bin/new && \
                  dd if=/dev/zero of=/file bs=1M count=48 2>&1; echo ended with $?";
    for runtime in Runtime::ALL {
        let said = ctr
            .container(&format!("mapped-{runtime}"), Image::Busybox, runtime)
            .snapshotter("quota")
            .flags(&maps)
            .flags(&["--remap-labels"])
            .output(script)
            .unwrap();
        assert!(said.starts_with("0:0\n"), "{runtime}: {said}");
        assert!(said.contains(QUOTA_EXCEEDED), "{runtime}: {said}");
    }
    ctr.collect_garbage().unwrap();
    containerd.finish().unwrap();
    snapshotter.finish().unwrap();
}
