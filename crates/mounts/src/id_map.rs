//! Binds that show owners mapped (kernel 5.12); must not map the ids of any process.

use std::ffi::CString;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sys::mount_api::{self as api, MountAttr};

use crate::error::{Error, Result};
use crate::flags as ms;
use crate::mount::{IdMap, IdRange, Mount, Scope};

/// A copy of `mount.source`, with all below it for a recursive bind, that shows owners mapped.
///
/// It is mapped before anybody can see it; the kernel maps nothing that is in use.
///
/// # Errors
/// [`Error::Kernel`]: ENOSYS before 5.12, EINVAL for a file system that cannot do it, EPERM in a user
/// namespace.
pub(crate) fn tree(map: &IdMap, mount: &Mount, users: &OwnedFd) -> Result<OwnedFd> {
    let detached = copy_of_source(mount)?;
    map_owners(&detached, users, map.scope)
        .map_err(|error| Error::kernel("map the owners of the source", error))?;
    Ok(detached)
}

/// A copy of `mount.source`, with all below it for a recursive bind.
pub(crate) fn copy_of_source(mount: &Mount) -> Result<OwnedFd> {
    let copied = match mount.options.flags_set & ms::REC {
        0 => Scope::Mount,
        _ => Scope::Tree,
    };
    copy(Path::new(&mount.source), copied)
}

/// Mounts such a copy where `target` is.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    api::move_mount(tree, target)
        .map_err(|error| Error::kernel("move the mapped mount to its target", error))
}

/// The user namespace that says how owners are mapped; nobody is in it.
///
/// # Errors
/// [`Error::Refused`] without ranges.
pub(crate) fn users(map: &IdMap) -> Result<OwnedFd> {
    if map.uids.is_empty() || map.gids.is_empty() {
        return Err(Error::refused("idmap needs uidMappings and gidMappings"));
    }
    sys::user_namespace(&lines(&map.uids), &lines(&map.gids))
        .map_err(|error| Error::kernel("make a user namespace for the id map", error))
}

/// A mount of what is at `path` that is nowhere yet, alone or with those below it. It ends with its
/// descriptor.
pub(crate) fn copy(path: &Path, scope: Scope) -> Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())
        .map_err(|_nul| Error::refused("the source holds a NUL byte"))?;
    let flags = api::OPEN_TREE_CLONE | api::OPEN_TREE_CLOEXEC | recursion(scope);
    api::open_tree(nix::fcntl::AT_FDCWD, &text, flags)
        .map_err(|error| Error::kernel(format!("open_tree of {}", path.display()), error))
}

/// Maps the owners that such a mount shows.
pub(crate) fn map_owners(
    detached: impl AsFd,
    users: &OwnedFd,
    scope: Scope,
) -> std::io::Result<()> {
    let attributes = MountAttr {
        attr_set: api::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_raw_fd().unsigned_abs()),
    };
    let flags = api::AT_EMPTY_PATH | recursion(scope);
    api::mount_setattr(detached, c"", flags, &attributes)
}

fn recursion(scope: Scope) -> u32 {
    match scope {
        Scope::Mount => 0,
        Scope::Tree => api::AT_RECURSIVE,
    }
}

/// The text of a uid_map or gid_map (user_namespaces(7)).
fn lines(ranges: &[IdRange]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        let IdRange {
            inside,
            outside,
            count,
        } = range;
        // Writing to a String cannot fail.
        let _written = writeln!(text, "{inside} {outside} {count}");
        text
    })
}
