//! A disk that is full. A change that was made and has no room to be stored is taken back; what
//! makes room is always possible.

use std::fs::{self, File};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use snapshot_core::{CommitRequest, Error, Kind, Result};
use sys::filesystem::is_written_in_place;

use crate::{
    disk::{Disk, fill},
    root::{Root, key, labels},
};

/// Enough for the store and some snapshots.
const SIZE: &str = "size=2m";

/// A root on a small disk.
struct Small(Root);

impl Small {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(kind, folder.path(), kind, flags, Some(SIZE)).unwrap();
        Self(Root::within(folder))
    }

    /// Leaves no room.
    fn fill(&self) {
        fs::write(self.0.path("filler"), vec![1; 4 << 20]).unwrap_err();
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.0.close();
        umount2(self.0.folder.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// New pages of the store are taken until there are none; the names of those that were changed, and
/// of the one that was refused.
fn until_refused(change: impl Fn(&str) -> Result<()>, names: &[String]) -> String {
    for name in names {
        match change(name) {
            Ok(()) => {}
            Err(refusal) => {
                assert!(matches!(refusal, Error::Exhausted(_)), "{refusal:?}");
                return name.clone();
            }
        }
    }
    panic!("the disk is never full");
}

fn prepared(root: &Root) -> Vec<String> {
    let names: Vec<_> = (0..300)
        .map(|number| format!("snapshot {number}"))
        .collect();
    for name in &names {
        root.prepare(name, None).unwrap();
    }
    names
}

#[test]
fn labels_that_cannot_be_stored_do_not_stay_in_force() {
    let small = Small::new();
    let root = &small.0;
    let names = prepared(root);
    small.fill();
    let long = labels(&[("a", &"x".repeat(4000))]);
    let change = |name: &str| {
        root.driver.labels();
        root.snapshots().update(&key(name), &[], &long).map(drop)
    };
    let refused = until_refused(change, &names);
    let old = labels(&[]);
    assert_eq!(root.driver.labels(), [long, old.clone()]);
    assert_eq!(root.list(&[&format!("name=={refused:?}")])[0].labels, old);
}

#[test]
fn a_commit_that_cannot_be_stored_leaves_the_snapshot_as_it_was() {
    let small = Small::new();
    let root = &small.0;
    let names = prepared(root);
    small.fill();
    let commit = |name: &str| {
        root.driver.labels();
        root.driver.ended();
        root.snapshots().commit(CommitRequest {
            name: key(&format!("layer of {name}")),
            key: key(name),
            parent: None,
            labels: labels(&[("a", &"x".repeat(4000))]),
        })
    };
    let refused = until_refused(commit, &names);
    // The driver was told that its labels hold again.
    assert_eq!(root.driver.labels(), [labels(&[])]);
    let (committed, uncommitted) = root.driver.ended();
    assert_eq!((committed.len(), uncommitted.len()), (0, 1));
    let info = &root.list(&[&format!("name=={refused:?}")])[0];
    assert_eq!(info.kind, Kind::Active);
    small.make_room();
    commit(&refused).unwrap();
    assert_eq!(root.driver.ended(), (uncommitted, Vec::new()));
}

fn is_refused_as_full(refused: &Result<impl std::fmt::Debug>) -> bool {
    matches!(refused, Err(Error::Exhausted(_))) || refused.as_ref().is_err_and(Error::is_full)
}

fn what_fills_it_can_be_removed(kind: &str, mib: u64) {
    let disk = Disk::new(kind, mib);
    let mut root = Root::at(disk.path());
    let count = 60;
    for number in 0..count {
        root.prepare(&number.to_string(), None).unwrap();
    }
    root.prepare("large", None).unwrap();
    fill(&root.directory_of("large").join("fs"));
    let long = labels(&[("a", &"x".repeat(4000))]);
    for _again in 0..2 {
        // Labels need more room than there is, at some time.
        for number in 0..count {
            let name = key(&number.to_string());
            let changed = root.snapshots().update(&name, &[], &long);
            assert!(
                changed.is_ok() || is_refused_as_full(&changed),
                "{changed:?}"
            );
            root.snapshots().stat(&name).unwrap();
        }
        root.reopen();
        assert_eq!(root.names().len(), count + 1);
        assert!(root.directory_of("large").exists());
    }
    for number in 0..count / 2 {
        root.remove(&number.to_string()).unwrap();
        assert_eq!(root.names().len(), count - number);
    }
    root.remove("large").unwrap();
    root.snapshots().cleanup().unwrap();
    root.prepare("next", None).unwrap();
    fs::write(root.directory_of("next").join("fs/file"), vec![1; 1 << 20]).unwrap();
    root.close();
}

#[test]
fn what_fills_an_ext4_can_be_removed() {
    what_fills_it_can_be_removed("ext4", 32);
}

#[test]
fn what_fills_a_btrfs_can_be_removed() {
    what_fills_it_can_be_removed("btrfs", 128);
}

#[test]
fn what_fills_an_xfs_can_be_removed() {
    what_fills_it_can_be_removed("xfs", 300);
}

#[test]
fn what_cannot_be_written_can_be_read() {
    for kind in ["ext4", "btrfs"] {
        let disk = Disk::new(kind, 128);
        let mut root = Root::at(disk.path());
        root.prepare("a", None).unwrap();
        root.close();
        disk.set_flags(MsFlags::MS_RDONLY);
        root.reopen();
        assert_eq!(root.names(), ["a"]);
        root.snapshots().mounts(&key("a")).unwrap();
        for refused in [root.prepare("b", None).map(drop), root.remove("a")] {
            let refusal = refused.unwrap_err();
            assert!(matches!(refusal, Error::Precondition(_)), "{refusal:?}");
        }
        disk.set_flags(MsFlags::empty());
        root.prepare("b", None).unwrap();
        root.remove("a").unwrap();
        assert_eq!(root.names(), ["b"]);
        root.close();
    }
}

#[test]
fn an_older_store_on_btrfs_is_replaced_by_one_that_is_written_in_place() {
    let disk = Disk::new("btrfs", 128);
    let mut root = Root::at(disk.path());
    root.prepare("a", None).unwrap();
    root.close();
    let path = root.path("store.redb");
    let in_place = || is_written_in_place(File::open(&path).unwrap()).unwrap();
    assert!(in_place());
    let text = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, text).unwrap();
    assert!(!in_place());
    root.reopen();
    assert_eq!(root.names(), ["a"]);
    assert!(in_place());
    root.close();
}
