//! Which targets are refused: the root itself, and what would make /proc lie; must not mount.

use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use crate::error::{Error, Result};
use crate::mount::Mount;
use crate::root_dir::{LastLink, Place, RootDir};

/// Files of a procfs that lxcfs and the like may cover (the same list as runc's).
const COVERABLE: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Whether a file system is one by which a container finds out about itself.
pub(crate) fn is_view_of_self(mount: &Mount) -> bool {
    !mount.is_bind() && matches!(mount.fstype.as_str(), "proc" | "sysfs")
}

/// The place of a `proc` or `sysfs`, none when it is missing. A target that is a link or no
/// directory is refused: the image could send it elsewhere and keep a /proc of its own making
/// (CVE-2019-19921, CVE-2023-28642).
pub(crate) fn find_ordinary_directory(root: &RootDir, mount: &Mount) -> Result<Option<Place>> {
    let refused = || {
        let fstype = &mount.fstype;
        Error::refused(format!(
            "filesystem {fstype:?} must be mounted on ordinary directory"
        ))
    };
    match root.find(Path::new(&mount.target), LastLink::Refuse) {
        Ok(Some(place)) if is_directory(&place) => Ok(Some(place)),
        Ok(None) => Ok(None),
        Ok(Some(_)) => Err(refused()),
        Err(error) if error.errno() == Some(nix::libc::ELOOP) => Err(refused()),
        Err(error) => Err(error),
    }
}

fn is_directory(place: &Place) -> bool {
    std::fs::metadata(crate::kernel::fd_path(place.as_fd())).is_ok_and(|about| about.is_dir())
}

/// Refuses a mount on the root itself, on /proc unless it is a procfs, and below /proc but for a
/// few files.
pub(crate) fn check_target(place: &Place, mount: &Mount) -> Result<()> {
    let inside = place.inside();
    if place.is_root() {
        let why = format!("mountpoint {:?} is on the top of rootfs", mount.target);
        return Err(Error::refused(why));
    }
    if inside == Path::new("/proc") {
        if mount.is_remount() || shows_procfs(mount) {
            return Ok(());
        }
        let why = format!("{inside:?} cannot be mounted because it is not of type proc");
        return Err(Error::refused(why));
    }
    let coverable = COVERABLE.iter().any(|file| inside == Path::new(file));
    if inside.starts_with("/proc") && !coverable && !mount.is_remount() {
        let why = format!("{inside:?} cannot be mounted because it is inside /proc");
        return Err(Error::refused(why));
    }
    Ok(())
}

fn shows_procfs(mount: &Mount) -> bool {
    if !mount.is_bind() {
        return mount.fstype == "proc";
    }
    let source = Path::new(&mount.source);
    statfs(source).is_ok_and(|about| about.filesystem_type() == PROC_SUPER_MAGIC)
}
