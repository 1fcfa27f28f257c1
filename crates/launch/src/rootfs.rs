//! Makes the container's root file system the root of this mount namespace, and ends the old one.
//!
//! Must not mount what config.json lists: that is `filesystems`.

use std::os::fd::OwnedFd;
use std::path::Path;

use mounts::{RootDir, mountinfo};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, stat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access, chdir, chroot, fchdir, pivot_root};

use crate::error::{Error, Result, host};
use crate::plan::{Root, RootEntry};

const NONE: Option<&str> = None;

/// The prepared root file system, on itself as a mount.
#[derive(Debug)]
pub(crate) struct NewRoot<'a> {
    plan: &'a Root,
    directory: RootDir,
}

impl<'a> NewRoot<'a> {
    /// Cuts this namespace off from the host's, unless it is shared with others, and binds the root
    /// file system onto itself, so that it is a mount of its own with everything below it.
    pub(crate) fn prepare(plan: &'a Root) -> Result<Self> {
        if plan.entry != RootEntry::Chroot {
            leave_the_hosts_mounts(plan)?;
        }
        let path = Path::new(&plan.path);
        mount(
            Some(path),
            path,
            NONE,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            NONE,
        )
        .map_err(|errno| cannot_reach(path, errno))?;
        if plan.entry == RootEntry::Chroot {
            // What is mounted below it is nobody else's affair, although others can see it.
            set_propagation(&plan.path, MsFlags::MS_PRIVATE | MsFlags::MS_REC)?;
        }
        let directory = RootDir::open(path)?;
        Ok(Self { plan, directory })
    }

    /// Where paths of the container are looked up, as long as the host's tree is there.
    pub(crate) fn directory(&self) -> &RootDir {
        &self.directory
    }

    /// Makes it the working directory: what createContainer hooks see as `.`.
    pub(crate) fn make_working_directory(&self) -> Result<()> {
        fchdir(&self.directory).map_err(host(|| format!("change directory to {}", self.plan.path)))
    }

    /// Enters it for good; afterwards nothing of the host's tree is left in this namespace.
    pub(crate) fn enter(self) -> Result<()> {
        self.make_working_directory()?;
        match self.plan.entry {
            RootEntry::Pivot => self.pivot()?,
            RootEntry::MoveChroot => self.move_and_chroot()?,
            RootEntry::Chroot => enter_working_directory()?,
        }
        let propagation = flags(self.plan.propagation);
        // Private and slave were set on the way in, where they keep mounts from leaking.
        if !propagation.is_empty()
            && !propagation.intersects(MsFlags::MS_PRIVATE | MsFlags::MS_SLAVE)
        {
            set_propagation("/", propagation)?;
        }
        Ok(())
    }

    /// pivot_root(".", ".") puts the old root on top of the new one, where it is detached; no
    /// directory of the image is needed for it (as LXC and runc do).
    fn pivot(&self) -> Result<()> {
        let step = |what: &'static str| move || format!("pivot_root: {what}");
        let old = open_directory(Path::new("/")).map_err(host(step("open the old root")))?;
        pivot_root(".", ".").map_err(host(|| format!("pivot_root to {}", self.plan.path)))?;
        fchdir(&old).map_err(host(step("enter the old root")))?;
        // Slave, so that what ends here does not end on the host.
        set_propagation(".", MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
        umount2(".", MntFlags::MNT_DETACH).map_err(host(step("detach the old root")))?;
        chdir("/").map_err(host(step("enter the new root")))
    }

    /// For hosts whose root is a ramfs, where pivot_root(2) answers EINVAL.
    fn move_and_chroot(&self) -> Result<()> {
        cover_host_proc_and_sys(&self.plan.path)?;
        mount(
            Some(self.plan.path.as_str()),
            "/",
            NONE,
            MsFlags::MS_MOVE,
            NONE,
        )
        .map_err(host(|| format!("move {} onto /", self.plan.path)))?;
        enter_working_directory()
    }
}

fn enter_working_directory() -> Result<()> {
    chroot(".")
        .and_then(|()| chdir("/"))
        .map_err(host(|| "enter the new root".to_owned()))
}

/// Nothing that is mounted from here on reaches the host, unless that is asked for.
fn leave_the_hosts_mounts(plan: &Root) -> Result<()> {
    let propagation = match flags(plan.propagation) {
        none if none.is_empty() => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        asked => asked,
    };
    set_propagation("/", propagation)?;
    make_parent_private(plan)
}

/// Remounts `/` read-only, keeping the flags that a user namespace may not clear.
pub(crate) fn make_root_readonly() -> Result<()> {
    remount_readonly("/").map_err(host(|| "remount / read-only".to_owned()))
}

/// Makes the mount at `target` read-only, leaving its other flags.
pub(crate) fn remount_readonly(target: &str) -> nix::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NONE, target, NONE, flags | kept_flags(target)?, NONE)
}

/// What a remount must repeat, because it would clear them and may not in a user namespace. Access
/// times stay as they are when no flag speaks of them.
fn kept_flags(target: &str) -> nix::Result<MsFlags> {
    let now = statvfs(target)?.flags();
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    Ok(pairs
        .iter()
        .filter(|(is, _)| now.contains(*is))
        .map(|(_, flag)| *flag)
        .collect())
}

fn flags(bits: u64) -> MsFlags {
    MsFlags::from_bits_retain(bits as nix::libc::c_ulong)
}

fn set_propagation(target: &str, flags: MsFlags) -> Result<()> {
    mount(NONE, target, NONE, flags, NONE).map_err(host(|| {
        format!("set the propagation of {target} to {:#x}", flags.bits())
    }))
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    // O_PATH is ignored before 2.6.39; reading a directory is all the same then.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}

/// The mount that holds the root file system must not be shared: pivot_root(2) refuses it, and the
/// bind would show up on the host.
fn make_parent_private(plan: &Root) -> Result<()> {
    let flag = if flags(plan.propagation).contains(MsFlags::MS_SLAVE) {
        MsFlags::MS_SLAVE
    } else {
        MsFlags::MS_PRIVATE
    };
    let mut path = Path::new(&plan.path);
    loop {
        match (mount(NONE, path, NONE, flag, NONE), path.parent()) {
            (Ok(()), _) => return Ok(()),
            // Not a mount point: ask the folder above.
            (Err(Errno::EINVAL), Some(parent)) => path = parent,
            (Err(errno), _) => return Err(cannot_reach(path, errno)),
        }
    }
}

/// Says which folder on the way closes a root file system to the mapped root of a user namespace.
fn cannot_reach(path: &Path, errno: Errno) -> Error {
    let mut step = format!("prepare root file system {}", path.display());
    if errno == Errno::EACCES {
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        if let Some(closed) = way
            .iter()
            .find(|&&at| access(at, AccessFlags::X_OK).is_err())
        {
            let mode = stat(*closed).map_or(0, |about| about.st_mode & 0o7777);
            step = format!(
                "{step}: no way through {} (mode {mode:04o})",
                closed.display()
            );
        }
    }
    Error::Host {
        step,
        source: errno.into(),
    }
}

/// Without pivot_root the host's full procfs and sysfs would stay in the namespace below the new
/// root, and the kernel would let the container mount unmasked ones on their account.
fn cover_host_proc_and_sys(new_root: &str) -> Result<()> {
    for path in full_proc_and_sys_mounts(new_root)? {
        match mount(
            NONE,
            path.as_str(),
            NONE,
            MsFlags::MS_SLAVE | MsFlags::MS_REC,
            NONE,
        ) {
            // Went away with a mount above it.
            Err(Errno::ENOENT) => continue,
            result => result.map_err(host(|| format!("make {path} a slave")))?,
        }
        match umount2(path.as_str(), MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::EPERM) => {
                mount(
                    Some("tmpfs"),
                    path.as_str(),
                    Some("tmpfs"),
                    MsFlags::empty(),
                    NONE,
                )
                .map_err(host(|| format!("cover {path}")))?;
            }
            Err(errno) => return Err(host(|| format!("unmount {path}"))(errno)),
        }
    }
    Ok(())
}

fn full_proc_and_sys_mounts(new_root: &str) -> Result<Vec<String>> {
    let entries = mountinfo::read().map_err(host(|| "read mountinfo".to_owned()))?;
    Ok(entries
        .into_iter()
        .filter(|entry| entry.root == "/" && matches!(entry.fstype.as_str(), "proc" | "sysfs"))
        .filter(|entry| !entry.path().starts_with(new_root))
        .map(|entry| entry.mount_point)
        .collect())
}
