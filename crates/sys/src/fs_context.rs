//! File systems configured word by word (kernel 5.2): fsopen(2), fsconfig(2), fsmount(2).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::raw;

/// FSCONFIG_* of linux/mount.h.
const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const CMD_CREATE: u32 = 6;

/// FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC.
const CLOEXEC: u32 = 1;

/// A file system that is being configured.
#[derive(Debug)]
pub struct FsContext {
    context: OwnedFd,
}

impl FsContext {
    /// A new one of that type.
    ///
    /// # Errors
    /// ENOSYS before 5.2, ENODEV for a type that the kernel does not know.
    pub fn open(fstype: &CStr) -> io::Result<Self> {
        // SAFETY: the name is NUL-terminated and outlives the call, which only reads it.
        let context =
            raw::owned(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), CLOEXEC) })?;
        Ok(Self { context })
    }

    /// An option with a value, of at most 255 bytes.
    ///
    /// # Errors
    /// EINVAL for an option or a value that the file system does not take.
    pub fn set(&self, key: &CStr, value: &CStr) -> io::Result<()> {
        self.configure(SET_STRING, Some(key), Some(value))
    }

    /// An option without a value.
    ///
    /// # Errors
    /// EINVAL for one that the file system does not take.
    pub fn set_flag(&self, key: &CStr) -> io::Result<()> {
        self.configure(SET_FLAG, Some(key), None)
    }

    /// Makes the file system and a mount of it that is nowhere yet, with these MOUNT_ATTR_*; its
    /// place it gets by [`crate::mount_api::move_mount`].
    ///
    /// # Errors
    /// As mount(2).
    pub fn mount(self, attributes: u32) -> io::Result<OwnedFd> {
        self.configure(CMD_CREATE, None, None)?;
        // SAFETY: the call takes numbers and touches no memory.
        raw::owned(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.context.as_raw_fd(),
                CLOEXEC,
                attributes,
            )
        })
    }

    fn configure(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: both strings are NUL-terminated or null, and outlive the call, which only reads
        // them.
        raw::unit(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.context.as_raw_fd(),
                command,
                pointer(key),
                pointer(value),
                0,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_or_refused_one_by_one() {
        let context = match FsContext::open(c"tmpfs") {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => return,
            context => context.unwrap(),
        };
        context.set(c"mode", c"711").unwrap();
        let refused = context.set(c"no_such_word", c"1").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        assert!(context.set_flag(c"mode").is_err());
        context.mount(0).unwrap();
        let unknown = FsContext::open(c"no_such_fs").unwrap_err();
        assert_eq!(unknown.raw_os_error(), Some(libc::ENODEV));
    }
}
