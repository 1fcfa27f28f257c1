//! A file system of its own for a test: an image file, made by mkfs, mounted by a loop device.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sys::{ExitStatus, LoopAccess, LoopDevice, Spawn};

/// Unmounted and removed when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    target: PathBuf,
    // Last: it is removed after the mount in it is gone.
    _folder: tempfile::TempDir,
}

impl Disk {
    /// Of `mib` MiB (sparse) by `mkfs.KIND`, which is also the type to mount.
    pub(crate) fn new(kind: &str, mkfs: &[&str], mib: u64, options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // As mountinfo lists it.
        let path = folder.path().canonicalize().unwrap();
        let (file, target) = (path.join("image"), path.join("disk"));
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(&target).unwrap();
        run(&format!("/sbin/mkfs.{kind}"), mkfs, &file);
        let device = LoopDevice::attach(&file, LoopAccess::ReadWrite).unwrap();
        let none = MsFlags::empty();
        mount(
            Some(device.path()),
            &target,
            Some(kind),
            none,
            Some(options),
        )
        .unwrap();
        Self {
            target,
            _folder: folder,
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }
}

impl AsRef<Path> for Disk {
    fn as_ref(&self) -> &Path {
        &self.target
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that fails may still have files open in it.
        umount2(&self.target, MntFlags::MNT_DETACH).unwrap();
    }
}

/// mkfs.btrfs looks whether any loop device of the machine shows the file, and fails when one that
/// it looks at goes meanwhile: other tests have some.
const ATTEMPTS_MAX: usize = 20;

fn run(program: &str, arguments: &[&str], last: &Path) {
    let mut ended = ExitStatus::Exited(0);
    for _ in 0..ATTEMPTS_MAX {
        let null = File::options().write(true).open("/dev/null").unwrap();
        let command = Spawn::new(Path::new(program)).args(arguments).args([last]);
        let mut child = command.stdout(OwnedFd::from(null)).spawn().unwrap();
        ended = child.wait().unwrap();
        if ended == ExitStatus::Exited(0) || !program.ends_with("btrfs") {
            break;
        }
    }
    assert_eq!(ended, ExitStatus::Exited(0), "{program}");
}
