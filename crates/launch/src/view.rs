//! Puts fresh mounts in the place of dead ones, in a container that runs.
//!
//! A FUSE whose daemon was killed stays mounted wherever it was bound and answers nothing any more.
//! Nothing is looked up by a name that the container could have changed since: what is detached was
//! seen to be on the dead device, and all of it happens in the container's mount namespace, where
//! the container could do no less.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use sys::filesystem::device_of;
use sys::mount_api::{MountAttr, mount_setattr};

use crate::error::{Result, host};
use crate::masks;
use crate::procfs::{Proc, fd_path};

/// More layers than this were not put there by us.
const LAYERS_MAX: usize = 16;

/// A file of a FUSE can lose its name, and be no mount's root any more, between copy and attachment:
/// its file system looks names up anew all the time. Then another copy is asked for, so often.
const COPIES_MAX: usize = 16;

/// What keeps a file system from doing anything.
const HARMLESS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// What is to be done in one container.
#[derive(Debug)]
pub struct Renewal<'a> {
    /// The container's mount namespace.
    pub namespace: OwnedFd,
    /// Major and minor numbers of devices whose mounts are dead.
    pub dead: Vec<(u32, u32)>,
    /// Where, absolute, in the container: only where the kernel's own file is on top, or a dead mount.
    pub targets: Vec<&'static str>,
    /// MS_* flags of the fresh mounts.
    pub flags: u64,
    /// Paths below them that are masked anew.
    pub masked: &'a [String],
    /// The label of masks, with SELinux.
    pub mount_label: Option<&'a str>,
}

/// Carries it out; gives how many mounts were attached. The calling thread stays in the container's
/// mount namespace: it must be one of its own, that ends. `copy` gives a detached mount for a target
/// (open_tree(2), kernel 5.2), made by another thread, that has not left the host's.
///
/// # Errors
/// The step that failed; what came before it stays done, and the whole can be done again.
pub fn renew(
    renewal: &Renewal<'_>,
    copy: impl Fn(&'static str) -> io::Result<OwnedFd>,
) -> Result<usize> {
    // The host's: descriptors of this thread are not in the container's.
    let proc = Proc::open()?;
    unshare(CloneFlags::CLONE_FS).map_err(host(|| "leave the process's directory".to_owned()))?;
    setns(&renewal.namespace, CloneFlags::CLONE_NEWNS)
        .map_err(host(|| "join the container's mount namespace".to_owned()))?;
    proc.make_working_directory()?;
    let mut attached = 0;
    let mut failed = None;
    for target in &renewal.targets {
        match replace(target, renewal, &copy) {
            Ok(put) => attached += usize::from(put),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    // With the dead mounts their masks went, too.
    let masked = masks::mask(&proc, renewal.masked, renewal.mount_label);
    // What failed first says more.
    failed.map_or(masked, Err).map(|()| attached)
}

/// True when a copy was attached; what the new one has not is the kernel's file again.
fn replace(
    target: &'static str,
    renewal: &Renewal<'_>,
    copy: impl Fn(&'static str) -> io::Result<OwnedFd>,
) -> Result<bool> {
    let copy = || copy(target);
    let step = || format!("copy the mount for {target}");
    // Before the dead one goes: until it is there, nothing is changed.
    let tree = match copy() {
        Ok(tree) => Some(tree),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(host(step)(error)),
    };
    detach(target, &renewal.dead).map_err(host(|| format!("detach the dead {target}")))?;
    match tree {
        Some(tree) => attach(target, tree, renewal.flags, || copy().map_err(host(step))),
        None => Ok(false),
    }
}

/// Takes away what is dead at a path.
fn detach(target: &str, dead: &[(u32, u32)]) -> nix::Result<()> {
    for _layer in 0..LAYERS_MAX {
        let Some(top) = open_path(target)? else {
            return Ok(());
        };
        if !dead.contains(&device_of(&top).map_err(|error| errno(&error))?) {
            return Ok(());
        }
        match umount2(fd_path(top.as_fd()).as_str(), MntFlags::MNT_DETACH) {
            // Or somebody else was quicker.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Puts a copy on top of the kernel's own file; nothing where another mount is.
fn attach(
    target: &str,
    mut tree: OwnedFd,
    flags: u64,
    copy: impl Fn() -> Result<OwnedFd>,
) -> Result<bool> {
    let step = || format!("attach a fresh {target}");
    let mut copies = 1;
    let is_ready = loop {
        let Some(place) = open_path(target).map_err(host(step))? else {
            return Ok(false);
        };
        if !is_the_kernels(&place, target).map_err(host(step))? {
            return Ok(false);
        }
        let is_ready = is_made_ready(&tree, flags).map_err(host(step))?;
        match sys::mount_api::move_mount(&tree, &place) {
            Ok(()) => break is_ready,
            Err(error) if errno(&error) == Errno::ENOENT && copies < COPIES_MAX => {
                copies += 1;
                tree = copy()?;
            }
            Err(error) => return Err(host(step)(error)),
        }
    };
    protect(target, flags, is_ready).map_err(host(|| format!("protect {target}")))?;
    Ok(true)
}

/// Makes a copy private and gives it its flags before anybody sees it, where the kernel can (5.12).
/// A copy of a shared mount is its peer: what is mounted in one appears in the other.
fn is_made_ready(tree: &OwnedFd, flags: u64) -> io::Result<bool> {
    let attributes = MountAttr {
        // These four have the same numbers as mount(2)'s.
        attr_set: flags & (MsFlags::MS_RDONLY | HARMLESS).bits(),
        attr_clr: 0,
        propagation: MsFlags::MS_PRIVATE.bits(),
        userns_fd: 0,
    };
    let flags = nix::libc::AT_EMPTY_PATH.cast_unsigned();
    match mount_setattr(tree, c"", flags, &attributes) {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Errno::ENOSYS => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes what was attached private, as a shared mount below has made it shared again, and gives it
/// its flags unless it has them.
fn protect(target: &str, flags: u64, is_ready: bool) -> nix::Result<()> {
    let top = open_path(target)?.ok_or(Errno::ENOENT)?;
    let path = fd_path(top.as_fd());
    let none: Option<&str> = None;
    mount(none, path.as_str(), none, MsFlags::MS_PRIVATE, none)?;
    if is_ready {
        return Ok(());
    }
    // All flags fit 32 bits, as wide as unsigned long is at least.
    let flags = nix::libc::c_ulong::try_from(flags).map_err(|_wide| Errno::EINVAL)?;
    let remount = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::from_bits_retain(flags);
    mount(none, path.as_str(), none, remount, none)
}

/// Whether what is there is of procfs or sysfs: the container may have mounts of its own.
fn is_the_kernels(place: &OwnedFd, target: &str) -> nix::Result<bool> {
    let wanted = if target.starts_with("/proc/") {
        PROC_SUPER_MAGIC
    } else {
        SYSFS_MAGIC
    };
    Ok(fstatfs(place)?.filesystem_type() == wanted)
}

/// What is on top at a path, by a descriptor that asks nothing of it; none when nothing is there.
fn open_path(path: &str) -> nix::Result<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ffi::CString;
    use std::fs::{self, File};
    use std::thread;

    use sys::mount_api::{OPEN_TREE_CLOEXEC, OPEN_TREE_CLONE, open_tree};

    use super::*;

    /// This thread is in a mount namespace of its own, whose mounts are all shared, as systemd has
    /// it on hosts.
    fn enter_shared() {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(none, "/", none, shared, none).unwrap();
    }

    fn renew_from_shared() -> String {
        enter_shared();
        let folder = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        let path = folder.path();
        mount(none, path, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::write(path.join("meminfo"), "fresh").unwrap();
        let name = CString::new(path.join("meminfo").to_str().unwrap()).unwrap();
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
        let tree = open_tree(File::open("/").unwrap(), &name, flags).unwrap();

        let containers = thread::spawn(|| {
            enter_shared();
            File::open("/proc/thread-self/ns/mnt").unwrap()
        });
        let renewal = Renewal {
            namespace: containers.join().unwrap().into(),
            dead: Vec::new(),
            targets: vec!["/proc/meminfo"],
            flags: (MsFlags::MS_BIND | MsFlags::MS_RDONLY | HARMLESS).bits(),
            masked: &[],
            mount_label: None,
        };
        let tree = Cell::new(Some(tree));
        let copy = |_target| tree.take().ok_or_else(|| io::Error::other("a second copy"));
        assert_eq!(renew(&renewal, copy).unwrap(), 1);
        assert_eq!(fs::read_to_string("/proc/meminfo").unwrap(), "fresh");
        fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
    }

    #[test]
    fn what_is_attached_is_nobodys_peer_and_cannot_be_written() {
        let table = thread::spawn(renew_from_shared).join().unwrap();
        let mut lines = table.lines();
        let line = lines.find(|line| line.contains(" /proc/meminfo "));
        let line = line.expect("it is mounted");
        assert!(line.contains(" ro,nosuid,nodev,noexec,"), "{line}");
        assert!(!line.contains("shared:"), "{line}");
    }
}
