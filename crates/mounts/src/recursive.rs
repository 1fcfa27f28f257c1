//! Attributes of a whole tree of mounts (`rro` and its kin); must not touch a single mount's flags.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::readlink;
use sys::mount_api::{self as api, MountAttr};

use crate::error::{Error, Result};
use crate::flags as ms;
use crate::kernel;
use crate::mount::MountOptions;
use crate::mountinfo::{self, Entry};
use crate::table::{self, Effect};

/// Applies the attributes, if any, to the mount at `at` and all below it.
///
/// Before mount_setattr(2) (kernel 5.12) each mount is changed on its own, so that one refusal
/// leaves those before it changed.
pub(crate) fn set_attributes(at: &Path, options: &MountOptions) -> Result<()> {
    if options.attrs_set == 0 && options.attrs_clear == 0 {
        return Ok(());
    }
    let attributes = MountAttr {
        attr_set: options.attrs_set,
        attr_clr: options.attrs_clear,
        propagation: 0,
        userns_fd: 0,
    };
    let path = CString::new(at.as_os_str().as_bytes()).expect("paths of ours hold no NUL");
    let result = api::mount_setattr(nix::fcntl::AT_FDCWD, &path, api::AT_RECURSIVE, &attributes);
    match result {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOSYS) => each(at, &attributes),
        other => other.map_err(|error| Error::kernel("mount_setattr of the tree", error)),
    }
}

fn each(at: &Path, attributes: &MountAttr) -> Result<()> {
    // A path by descriptor is a link to where the mount is, as mountinfo lists it.
    let top = readlink(at).map_or_else(|_no_link| at.to_owned(), Into::into);
    let mounts = mountinfo::below(&top)
        .map_err(|error| Error::kernel(format!("read mountinfo below {}", top.display()), error))?;
    for mount in mounts {
        let path = mount.path();
        let flags = changed(flags_of(&mount), attributes);
        match kernel::change(&path, ms::BIND | ms::REMOUNT | flags) {
            // Gone, or covered by another mount.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => {
                let step = format!("set mount flags {flags:#x} of {}", path.display());
                return Err(Error::kernel(step, errno));
            }
        }
    }
    Ok(())
}

/// The MS_* flags of a listed mount; statfs(2) tells them from 2.6.36 only.
fn flags_of(mount: &Entry) -> u64 {
    let words = mount.options.split(',');
    let flags = words.fold(0, |flags, word| match table::effect(word) {
        Some(Effect::Set(flag)) => flags | flag,
        _ => flags,
    });
    // No word says so: it is what is left.
    if flags & ms::ATIME_MODES == 0 {
        return flags | ms::STRICTATIME;
    }
    flags
}

/// MS_* flags after a change of MOUNT_ATTR_* attributes.
fn changed(now: u64, attributes: &MountAttr) -> u64 {
    const PAIRS: [(u64, u64); 6] = [
        (api::MOUNT_ATTR_RDONLY, ms::RDONLY),
        (api::MOUNT_ATTR_NOSUID, ms::NOSUID),
        (api::MOUNT_ATTR_NODEV, ms::NODEV),
        (api::MOUNT_ATTR_NOEXEC, ms::NOEXEC),
        (api::MOUNT_ATTR_NODIRATIME, ms::NODIRATIME),
        (api::MOUNT_ATTR_NOSYMFOLLOW, ms::NOSYMFOLLOW),
    ];
    let named = |wanted: u64| {
        let bits = PAIRS
            .iter()
            .filter(move |(attribute, _)| wanted & attribute != 0);
        bits.fold(0, |flags, (_, flag)| flags | flag)
    };
    let flags = now & !named(attributes.attr_clr) | named(attributes.attr_set);
    if attributes.attr_clr & api::MOUNT_ATTR_ATIME_MASK == 0 {
        return flags;
    }
    let mode = match attributes.attr_set & api::MOUNT_ATTR_ATIME_MASK {
        api::MOUNT_ATTR_NOATIME => ms::NOATIME,
        api::MOUNT_ATTR_STRICTATIME => ms::STRICTATIME,
        _ => ms::RELATIME,
    };
    flags & !ms::ATIME_MODES | mode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_words_are_flags_and_change_by_attributes() {
        let check = |words: &str, set: u64, clear: u64, expected: u64| {
            let line = format!("1 0 0:1 / /m {words} - tmpfs none rw,sync");
            let attributes = MountAttr {
                attr_set: set,
                attr_clr: clear,
                ..MountAttr::default()
            };
            let entry = mountinfo::parse(&line).remove(0);
            assert_eq!(changed(flags_of(&entry), &attributes), expected, "{words}");
        };
        let atime = api::MOUNT_ATTR_ATIME_MASK;
        check("rw", 0, 0, ms::STRICTATIME);
        check(
            "rw,nosuid,relatime",
            api::MOUNT_ATTR_RDONLY,
            0,
            ms::NOSUID | ms::RELATIME | ms::RDONLY,
        );
        check(
            "ro,noexec,noatime",
            0,
            api::MOUNT_ATTR_RDONLY,
            ms::NOEXEC | ms::NOATIME,
        );
        check("rw,noatime", 0, atime, ms::RELATIME);
        check("rw,relatime", api::MOUNT_ATTR_NOATIME, atime, ms::NOATIME);
        check(
            "rw,nodiratime,relatime",
            api::MOUNT_ATTR_STRICTATIME,
            atime,
            ms::NODIRATIME | ms::STRICTATIME,
        );
    }
}
