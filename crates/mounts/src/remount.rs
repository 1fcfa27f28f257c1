//! Flags of a mount that is there: what was asked, and what may not be lost; must not mount.

use std::path::Path;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::flags as ms;
use crate::kernel;
use crate::mount::MountOptions;

/// Gives a bind mount the flags that were asked for, if any were: as in `mount --bind -o`, those
/// not named are cleared, access times apart.
///
/// In a user namespace the kernel refuses (EPERM) to clear flags that came with the source. Then
/// they are kept, unless an option asked for just that.
///
/// # Errors
/// [`Error::Kernel`].
pub(crate) fn set_bind_flags(at: &Path, options: &MountOptions) -> Result<()> {
    let asked = options.flags_set & !(ms::BIND | ms::REC | ms::REMOUNT);
    if asked == 0 && options.flags_clear == 0 {
        return Ok(());
    }
    match kernel::change(at, ms::BIND | ms::REMOUNT | asked) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => keep_locked(at, asked, options.flags_clear),
        Err(errno) => Err(failed(asked, errno)),
    }
}

fn keep_locked(at: &Path, asked: u64, cleared: u64) -> Result<()> {
    let now = flags_of(at)?;
    let lost = now & cleared & ms::LOCKABLE;
    if lost != 0 {
        let step = format!("clear the locked mount flags {lost:#x}");
        return Err(Error::kernel(step, Errno::EPERM));
    }
    // The kernel takes RELATIME for nothing beside NOATIME, and STRICTATIME for all of them, so
    // that a wish for another mode would be lost without a word.
    if asked & ms::ATIME != 0 && asked & ms::ATIME != now & ms::ATIME {
        let step = format!("change the locked access time flags {:#x}", now & ms::ATIME);
        return Err(Error::kernel(step, Errno::EPERM));
    }
    let flags = asked | now & ms::LOCKABLE;
    kernel::change(at, ms::BIND | ms::REMOUNT | flags).map_err(|errno| failed(flags, errno))
}

fn failed(flags: u64, errno: Errno) -> Error {
    Error::kernel(format!("set mount flags {flags:#x}"), errno)
}

/// The MS_* flags a mount has, from statfs(2) (its flags are filled in from kernel 2.6.36).
fn flags_of(at: &Path) -> Result<u64> {
    /// ST_* bit and MS_* bit, from linux/statfs.h and linux/mount.h.
    const PAIRS: [(u64, u64); 10] = [
        (0x1, ms::RDONLY),
        (0x2, ms::NOSUID),
        (0x4, ms::NODEV),
        (0x8, ms::NOEXEC),
        (0x10, ms::SYNCHRONOUS),
        (0x40, ms::MANDLOCK),
        (0x400, ms::NOATIME),
        (0x800, ms::NODIRATIME),
        (0x1000, ms::RELATIME),
        (0x2000, ms::NOSYMFOLLOW),
    ];
    let is = sys::mount_api::mount_flags(at)
        .map_err(|error| Error::kernel("statfs of the mount", error))?;
    let flags = PAIRS
        .iter()
        .filter(|(st, _)| is & st != 0)
        .fold(0, |flags, (_, flag)| flags | flag);
    // No flag of its own says so: it is what is left.
    if flags & ms::ATIME_MODES == 0 {
        return Ok(flags | ms::STRICTATIME);
    }
    Ok(flags)
}
