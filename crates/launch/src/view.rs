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

use crate::error::{Result, host};
use crate::masks;
use crate::procfs::{Proc, fd_path};

/// More layers than this were not put there by us.
const LAYERS_MAX: usize = 16;

/// A file of a FUSE can lose its name, and be no mount's root any more, between copy and attachment:
/// its file system looks names up anew all the time. Then another copy is asked for, so often.
const COPIES_MAX: usize = 16;

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
    for target in &renewal.targets {
        let copy = || copy(target).map_err(host(|| format!("copy the mount for {target}")));
        // Before the dead one goes: until it is there, nothing is changed.
        let tree = copy()?;
        detach(target, &renewal.dead).map_err(host(|| format!("detach the dead {target}")))?;
        if attach(target, tree, renewal.flags, copy)? {
            attached += 1;
        }
    }
    masks::mask(&proc, renewal.masked, renewal.mount_label)?;
    Ok(attached)
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
    loop {
        let Some(place) = open_path(target).map_err(host(step))? else {
            return Ok(false);
        };
        if !is_the_kernels(&place, target).map_err(host(step))? {
            return Ok(false);
        }
        match sys::mount_api::move_mount(&tree, &place) {
            Ok(()) => break,
            Err(error) if errno(&error) == Errno::ENOENT && copies < COPIES_MAX => {
                copies += 1;
                tree = copy()?;
            }
            Err(error) => return Err(host(step)(error)),
        }
    }
    protect(target, flags).map_err(host(|| format!("make {target} read-only")))?;
    Ok(true)
}

fn protect(target: &str, flags: u64) -> nix::Result<()> {
    let top = open_path(target)?.ok_or(Errno::ENOENT)?;
    let none: Option<&str> = None;
    // All flags fit 32 bits, as wide as unsigned long is at least.
    let flags = nix::libc::c_ulong::try_from(flags).map_err(|_wide| Errno::EINVAL)?;
    mount(
        none,
        fd_path(top.as_fd()).as_str(),
        none,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::from_bits_retain(flags),
        none,
    )
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
