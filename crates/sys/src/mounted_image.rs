//! A file system of its own for a test: an image file, made by mkfs, mounted by a loop device.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::btrfs::{self, QuotaMode, SubvolumeId};
use crate::{ExitStatus, LoopAccess, LoopDevice, Spawn};

/// Unmounted and removed when dropped.
#[derive(Debug)]
pub(crate) struct MountedImage {
    file: PathBuf,
    target: PathBuf,
    // Last: it is removed after the mount in it is gone.
    _directory: tempfile::TempDir,
}

impl MountedImage {
    /// Of `mib` MiB (sparse) by `mkfs.KIND`, which is also the type to mount.
    pub(crate) fn new(kind: &str, mkfs: &[&str], mib: u64, options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (file, target) = (directory.path().join("image"), directory.path().join("mnt"));
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(&target).unwrap();
        run(&format!("/sbin/mkfs.{kind}"), mkfs, &file);
        let device = LoopDevice::attach(&file, LoopAccess::ReadWrite).unwrap();
        let flags = MsFlags::empty();
        mount(
            Some(device.path()),
            &target,
            Some(kind),
            flags,
            Some(options),
        )
        .unwrap();
        Self {
            file,
            target,
            _directory: directory,
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    /// Makes the image and its device as large as `mib` MiB, not yet what is in it.
    pub(crate) fn grow(&self, mib: u64) {
        let file = File::options().write(true).open(&self.file).unwrap();
        file.set_len(mib << 20).unwrap();
        let device = LoopDevice::of_file(&file).unwrap().expect("it is mounted");
        device.take_file_size().unwrap();
    }

    /// Syncs until btrfs has dropped a destroyed subvolume: each sync wakes its cleaner.
    pub(crate) fn wait_until_dropped(&self, id: SubvolumeId) {
        let (root, start) = (self.root(), std::time::Instant::now());
        btrfs::sync(&root).unwrap();
        while btrfs::subvolume_exists(&root, id).unwrap() {
            assert!(start.elapsed().as_secs() < 60, "{id:?} is not dropped");
            btrfs::sync(&root).unwrap();
        }
    }

    /// Syncs until classic quota has counted what was there when it began: what is written meanwhile
    /// meets no limit.
    pub(crate) fn wait_until_counted(&self) {
        let (root, start) = (self.root(), std::time::Instant::now());
        while btrfs::quota_mode(&root).unwrap() == QuotaMode::ClassicStale {
            assert!(start.elapsed().as_secs() < 60, "the rescan does not end");
            btrfs::sync(&root).unwrap();
        }
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> File {
        File::open(&self.target).unwrap()
    }
}

impl Drop for MountedImage {
    fn drop(&mut self) {
        // A test that fails may still have files open in it.
        umount2(&self.target, MntFlags::MNT_DETACH).unwrap();
    }
}

fn run(program: &str, arguments: &[&str], last: &Path) {
    let null = File::options().write(true).open("/dev/null").unwrap();
    let command = Spawn::new(Path::new(program)).args(arguments).args([last]);
    let ended = command
        .stdout(OwnedFd::from(null))
        .spawn()
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(ended, ExitStatus::Exited(0), "{program}");
}
