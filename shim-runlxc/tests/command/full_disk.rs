//! A disk that is full: what cannot be written is refused in one line, and nothing is left.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::{Place, names};

/// A file system of that size, mounted at the state root; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn at_root(place: &Place, size: &str) -> Self {
        let root = place.root();
        fs::create_dir_all(&root).unwrap();
        let flags = MsFlags::empty();
        mount(Some("tiny"), &root, Some("tmpfs"), flags, Some(size)).unwrap();
        Self(root)
    }

    /// Takes what is left of it.
    fn fill(&self) {
        let mut file = File::create(self.0.join("full")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Makes a container on ever larger disks until one is large enough, so that every write has
/// failed once.
fn create_on_ever_larger_disks(option: &str, max: usize) {
    let place = Place::new("sleep 1000");
    let is_enough = |size: &usize| {
        let _disk = Disk::at_root(&place, &format!("{option}={size}"));
        let said = place.create();
        if said.code == 0 {
            place.on("start").ok();
            place.run(&["delete", "--force", &place.id]).ok();
            return true;
        }
        said.fails_with("No space left on device");
        assert_eq!(names(&place.root()), [""; 0], "{option}={size}");
        false
    };
    let enough = (1..=max).find(is_enough);
    assert!(enough.is_some_and(|size| size > 1), "{enough:?}");
    place.finish();
}

#[test]
fn a_container_that_finds_no_inode_leaves_nothing() {
    create_on_ever_larger_disks("nr_inodes", 32);
}

#[test]
fn a_container_that_finds_no_block_leaves_nothing() {
    create_on_ever_larger_disks("nr_blocks", 64);
}

#[test]
fn what_runs_on_a_disk_that_fills_up_goes_on() {
    let place = Place::new("sleep 1000");
    let disk = Disk::at_root(&place, "nr_blocks=64");
    place.create().ok();
    disk.fill();
    place.on("start").ok();
    assert_eq!(place.status(), "running");
    place.run(&["exec", &place.id, "true"]).ok();
    place.run(&["kill", &place.id, "KILL"]).ok();
    place.wait_stopped(
        place.state()["pid"]
            .as_i64()
            .unwrap_or(0)
            .try_into()
            .unwrap(),
    );
    place.on("delete").ok();
    assert_eq!(names(&place.root()), ["full"]);
    drop(disk);
    place.finish();
}
