//! A snapshot as a container sees it.

use std::path::{Path, PathBuf};

use mounts::{Mount, MountOptions};
use snapshotter_quota::backend::Record;

/// Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Overlay {
    target: PathBuf,
}

impl Overlay {
    /// Of one snapshot over an empty directory.
    pub(crate) fn new(root: &Path, directory: &Path, record: &Record) -> Self {
        let lower = root.join("empty");
        let name = directory.file_name().unwrap().to_str().unwrap();
        let target = root.join(format!("merged-{name}"));
        std::fs::create_dir_all(&lower).unwrap();
        std::fs::create_dir_all(&target).unwrap();
        let words = [
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", record.upper(directory).display()),
            format!("workdir={}", record.work(directory).display()),
        ];
        let mount = Mount {
            source: "overlay".to_owned(),
            target: String::new(),
            fstype: "overlay".to_owned(),
            options: MountOptions::parse(&words).unwrap(),
        };
        mounts::apply_host(&mount, &target).unwrap();
        Self { target }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    /// What df(1) shows: bytes in all.
    pub(crate) fn bytes(&self) -> u64 {
        let about = nix::sys::statvfs::statvfs(&self.target).unwrap();
        about.blocks() * about.fragment_size()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        mounts::unmount_tree(&self.target).unwrap();
        std::fs::remove_dir(&self.target).unwrap();
    }
}
