//! Which back ends are said to work, on file systems where that is known.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

#[expect(dead_code, reason = "project_quota.rs uses the rest")]
mod rig;

use std::{fs, path::Path};

use rig::disk::Disk;
use snapshot_core::Error;
use snapshotter_quota::backend::{Abilities, Full, Kind, Options, ProjectRange, Resize, probe};
use sys::btrfs::{self, QuotaKind, QuotaMode};

fn options() -> Options {
    let mut options = Options::default();
    options.image.reserve_bytes = 0;
    options
}

fn try_one(kind: Kind, root: &Path) -> Result<Abilities, Error> {
    let outcome = probe(kind, root, &options());
    let left: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "lost+found")
        .collect();
    assert!(left.is_empty(), "{kind}: {left:?}");
    let root = root.canonicalize().unwrap();
    let mounts = mounts::mountinfo::below(&root).unwrap();
    assert!(
        mounts.iter().all(|mount| mount.path() == root),
        "{mounts:?}"
    );
    outcome
}

fn why(kind: Kind, root: &Path) -> String {
    try_one(kind, root).unwrap_err().to_string()
}

#[test]
fn on_btrfs_its_quota_works_and_is_off_again_if_it_was() {
    let disk = Disk::new("btrfs", &["-q"], 512, "");
    let mode = || btrfs::quota_mode(fs::File::open(disk.path()).unwrap()).unwrap();
    let abilities = try_one(Kind::Btrfs, disk.path()).unwrap();
    assert_eq!(abilities.full, Full::QuotaExceeded);
    assert_eq!(mode(), QuotaMode::Off);
    let open = fs::File::open(disk.path()).unwrap();
    btrfs::enable_quota(&open, QuotaKind::Simple).unwrap();
    try_one(Kind::Btrfs, disk.path()).unwrap();
    assert_eq!(mode(), QuotaMode::Simple);
    let error = why(Kind::Prjquota, disk.path());
    assert!(
        error.contains("the back end btrfs does it there"),
        "{error}"
    );
}

#[test]
fn on_ext4_and_xfs_without_quota_images_work() {
    for (kind, mib) in [("ext4", 128), ("xfs", 300)] {
        let disk = Disk::new(kind, &["-q"], mib, "");
        let error = why(Kind::Prjquota, disk.path());
        assert!(error.contains("without project quota"), "{error}");
        let error = why(Kind::Btrfs, disk.path());
        assert!(error.contains("is not on btrfs"), "{error}");
        let abilities = try_one(Kind::Image, disk.path()).unwrap();
        assert_eq!(
            (abilities.resize, abilities.full),
            (Resize::Grow, Full::NoSpace)
        );
    }
}

#[test]
fn tmpfs_and_none_work_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let abilities = try_one(Kind::Tmpfs, folder.path()).unwrap();
    assert_eq!(abilities.full, Full::NoSpace);
    let abilities = try_one(Kind::None, folder.path()).unwrap();
    assert_eq!(abilities.full, Full::Never);
    assert!(probe(Kind::Tmpfs, &folder.path().join("missing"), &options()).is_err());
}

/// The kernel tells which it is; project_quota.rs has the other half.
#[test]
fn a_pool_works_or_says_what_the_kernel_has_not() {
    let folder = tempfile::tempdir().unwrap();
    match try_one(Kind::Pool, folder.path()) {
        Ok(abilities) => assert_eq!(abilities.full, Full::NoSpace),
        Err(error) => assert!(error.to_string().contains("CONFIG_XFS_QUOTA"), "{error}"),
    }
}

#[test]
fn what_a_killed_probe_left_is_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    // No process has that number: it is beyond the kernel's largest.
    let stale = root.join("probe-4194305-tmpfs");
    fs::create_dir_all(stale.join("merged")).unwrap();
    let none = nix::mount::MsFlags::empty();
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, &stale.join("merged"), tmpfs, none, None::<&str>).unwrap();
    try_one(Kind::Tmpfs, root).unwrap();
    for foreign in ["probe-1-tmpfs", "probe-", "probe-x-y"] {
        fs::create_dir(root.join(foreign)).unwrap();
    }
    probe(Kind::Tmpfs, root, &options()).unwrap();
    assert_eq!(fs::read_dir(root).unwrap().count(), 3);
}

#[test]
fn ranges_of_projects_are_given_on() {
    let mut options = options();
    options.projects = ProjectRange::new(5, 100_000).unwrap();
    let folder = tempfile::tempdir().unwrap();
    probe(Kind::Image, folder.path(), &options).unwrap();
}
