//! snapshotter-quota: the suite on each of its back ends.

use std::{path::Path, time::Duration};

use integration::{
    conformance::{CASES, DirectoryRename, Target},
    disk::Disk,
    guest::Series,
    original_suite,
    snapshotter::{Setup, Snapshotter},
};

use super::{DISK_BYTES, again_in_guest, failures, is_in_guest};

/// Limits of every writable snapshot, as far as the back end can make them hold.
fn limits(kind: &str) -> &'static str {
    match kind {
        "none" => "",
        "btrfs" => "default_size = \"256m\"",
        _ => "default_size = \"256m\"\ndefault_inodes = 10000",
    }
}

fn start(kind: &str, root: Option<&Path>, umask: u32) -> Snapshotter {
    let limits = limits(kind);
    let config = format!("[backend]\nkind = \"{kind}\"\n[quota]\n{limits}\n");
    let setup = Setup {
        root: root.map(Path::to_owned),
        umask,
        ..Setup::quota(&config).unwrap()
    };
    Snapshotter::start(setup).unwrap()
}

/// What the suite is told: overlay cannot rename directories of lower layers.
fn target(snapshotter: &Snapshotter) -> Target {
    Target {
        directory_rename: DirectoryRename::LeftOut,
        ..snapshotter.target()
    }
}

fn check(kind: &str, root: Option<&Path>) {
    let snapshotter = start(kind, root, 0o022);
    let failures = failures(&target(&snapshotter), &CASES);
    assert!(failures.is_empty(), "{kind}: {failures:#?}");
    snapshotter.finish().unwrap();
}

#[test]
fn plain_directories_conform() {
    check("none", None);
}

#[test]
fn btrfs_conforms() {
    let disk = Disk::sparse("btrfs", DISK_BYTES, &["-q"], "").unwrap();
    check("btrfs", Some(&disk.path().join("root")));
}

#[test]
fn containerd_s_own_suite_passes_on_btrfs() {
    let disk = Disk::sparse("btrfs", DISK_BYTES, &["-q"], "").unwrap();
    let snapshotter = start("btrfs", Some(&disk.path().join("root")), 0o022);
    original_suite::passes(&target(&snapshotter)).unwrap();
    snapshotter.finish().unwrap();
}

#[test]
fn images_conform() {
    check("image", None);
}

#[test]
fn tmpfs_conforms() {
    check("tmpfs", None);
}

#[test]
fn roots_are_0755_under_every_umask() {
    let cases = CASES.map(|case| (case.name == "RootPermission").then_some(case));
    let [case] = cases.iter().flatten().copied().collect::<Vec<_>>()[..] else {
        panic!("there is one such case");
    };
    for umask in [0o000, 0o077, 0o777] {
        let snapshotter = start("none", None, umask);
        let failures = failures(&target(&snapshotter), &[case]);
        assert!(failures.is_empty(), "umask {umask:o}: {failures:#?}");
        snapshotter.finish().unwrap();
    }
}

/// Kernels of Debian have project quota, this machine's need not: in a guest the test is run again.
fn check_in_guest(series: Series, name: &str) {
    if !is_in_guest() {
        let path = format!("conformance::quota::{name}");
        return again_in_guest(series, &path, Duration::from_secs(1500));
    }
    let project: &[&str] = &["-q", "-O", "project,quota"];
    for (back_end, kind, mkfs, options) in [
        ("prjquota", "ext4", project, "prjquota"),
        ("prjquota", "xfs", &["-q"], "prjquota"),
        ("pool", "ext4", &["-q"], ""),
    ] {
        let disk = Disk::sparse(kind, DISK_BYTES, mkfs, options).unwrap();
        check(back_end, Some(&disk.path().join("root")));
    }
}

#[test]
fn project_quota_and_a_pool_conform_on_kernel_5_10() {
    check_in_guest(
        Series::V5_10,
        "project_quota_and_a_pool_conform_on_kernel_5_10",
    );
}

#[test]
fn project_quota_and_a_pool_conform_on_kernel_6_1() {
    check_in_guest(
        Series::V6_1,
        "project_quota_and_a_pool_conform_on_kernel_6_1",
    );
}

#[test]
fn project_quota_and_a_pool_conform_on_kernel_6_12() {
    check_in_guest(
        Series::V6_12,
        "project_quota_and_a_pool_conform_on_kernel_6_12",
    );
}
