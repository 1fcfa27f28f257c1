//! Mount calls by descriptor (kernels 5.2 and 5.12); before them each call answers ENOSYS.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::raw;

/// open_tree(2): make a detached copy.
pub const OPEN_TREE_CLONE: u32 = 1;
/// open_tree(2): close-on-exec.
pub const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC.unsigned_abs();
/// All of a tree, for open_tree(2) and mount_setattr(2).
pub const AT_RECURSIVE: u32 = 0x8000;
/// The descriptor itself when the path is empty.
pub const AT_EMPTY_PATH: u32 = 0x1000;
/// move_mount(2): the source is the descriptor itself.
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
/// move_mount(2): the target is the descriptor itself.
pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// mount_setattr(2) attribute: read-only.
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// mount_setattr(2) attribute: no set-user-id.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// mount_setattr(2) attribute: no devices.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// mount_setattr(2) attribute: no programs.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// mount_setattr(2): the mask of access-time modes.
pub const MOUNT_ATTR_ATIME_MASK: u64 = 0x70;
/// mount_setattr(2) access-time mode.
pub const MOUNT_ATTR_RELATIME: u64 = 0;
/// mount_setattr(2) access-time mode.
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// mount_setattr(2) access-time mode.
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
/// mount_setattr(2) attribute: no access times of directories.
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
/// mount_setattr(2) attribute: ids are mapped by [`MountAttr::userns_fd`].
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// mount_setattr(2) attribute (kernel 5.14): symbolic links are not followed.
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// Attributes to set.
    pub attr_set: u64,
    /// Attributes to clear, before those to set.
    pub attr_clr: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE or 0.
    pub propagation: u64,
    /// Number of a user namespace's descriptor, for [`MOUNT_ATTR_IDMAP`].
    pub userns_fd: u64,
}

/// open_tree(2), kernel 5.2.
pub fn open_tree(directory: impl AsFd, path: &CStr, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: `path` is NUL-terminated and outlives the call, which only reads it.
    raw::owned(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            directory.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
        )
    })
}

/// move_mount(2), kernel 5.2, of what `from` is to where `to` is.
pub fn move_mount(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are NUL-terminated literals, which the call only reads.
    raw::unit(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_fd().as_raw_fd(),
            c"".as_ptr(),
            to.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    })
}

/// mount_setattr(2), kernel 5.12.
pub fn mount_setattr(
    directory: impl AsFd,
    path: &CStr,
    flags: u32,
    attributes: &MountAttr,
) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated, `attributes` has the kernel's layout of the given size;
    // both outlive the call, which only reads them.
    raw::unit(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    })
}

/// The ST_* flags of the mount that a path is on, all of them, by statvfs(3).
///
/// The kernel tells them from 2.6.36; before that they are 0.
pub fn mount_flags(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` is NUL-terminated and `about` a valid struct statvfs that the call fills.
    raw::unit(unsafe { libc::statvfs(path.as_ptr(), about.as_mut_ptr()) }.into())?;
    // SAFETY: all zero bytes, as it was made, are a valid struct statvfs.
    let about = unsafe { about.assume_init() };
    Ok(about.f_flag)
}
