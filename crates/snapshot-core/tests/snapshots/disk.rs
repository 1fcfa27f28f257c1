//! A small file system of its own: an image file, made by mkfs, mounted by a loop device.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use sys::{ExitStatus, LoopAccess, LoopDevice, Spawn};

/// mkfs.btrfs fails when a loop device that it looks at goes meanwhile: other tests have some.
const ATTEMPTS_MAX: usize = 20;

/// Nobody has files open for so long that should not.
const LIMIT: Duration = Duration::from_secs(20);

/// Unmounted when dropped, and removed with the directory that it is mounted at.
pub(crate) struct Disk {
    target: tempfile::TempDir,
    _image: tempfile::NamedTempFile,
}

impl Disk {
    /// Of `mib` MiB by `mkfs.KIND`, which is also the type to mount.
    pub(crate) fn new(kind: &str, mib: u64) -> Self {
        let (image, target) = (
            tempfile::NamedTempFile::new().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        image.as_file().set_len(mib << 20).unwrap();
        make(kind, image.path());
        let device = LoopDevice::attach(image.path(), LoopAccess::ReadWrite).unwrap();
        let (none, no_options): (_, Option<&str>) = (MsFlags::empty(), None);
        mount(
            Some(device.path()),
            target.path(),
            Some(kind),
            none,
            no_options,
        )
        .unwrap();
        Self {
            target,
            _image: image,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.target.path()
    }

    /// Lets nobody write to it any more, or again.
    pub(crate) fn set_flags(&self, flags: MsFlags) {
        let (none, flags): (Option<&str>, _) = (None, flags | MsFlags::MS_REMOUNT);
        let start = Instant::now();
        loop {
            match mount(none, self.path(), none, flags, none) {
                // A child that another test makes has copies of our files until it is a program.
                Err(Errno::EBUSY) if start.elapsed() < LIMIT => std::thread::yield_now(),
                done => return done.unwrap(),
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that fails may still have files open in it.
        umount2(self.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

fn make(kind: &str, image: &Path) {
    let program = format!("/sbin/mkfs.{kind}");
    for _ in 0..ATTEMPTS_MAX {
        let null = || OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
        let command = Spawn::new(Path::new(&program)).args(["-q"]).args([image]);
        let mut child = command.stdout(null()).stderr(null()).spawn().unwrap();
        if child.wait().unwrap() == ExitStatus::Exited(0) {
            return;
        }
    }
    panic!("{program} failed");
}

/// Writes until not even one block has room.
pub(crate) fn fill(folder: &Path) {
    for (name, length) in [("large", 1 << 20), ("small", 4096)] {
        let mut file = File::create(folder.join(name)).unwrap();
        let mut block = vec![1; length];
        for number in 0_u64.. {
            block[..8].copy_from_slice(&number.to_le_bytes());
            let written = file.write_all(&block).and_then(|()| file.sync_data());
            match written {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                    break;
                }
            }
        }
    }
    // Names have room in the tree of btrfs for longer.
    let _full = fs::write(folder.join("last"), vec![1; 4096]);
}
