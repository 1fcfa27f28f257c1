//! Results of raw system calls as values; must not make any decision.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// The errno of the last failed call of this thread. Async-signal-safe.
pub(crate) fn errno() -> i32 {
    nix::errno::Errno::last_raw()
}

/// Nothing, or the errno.
pub(crate) fn unit(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A number, or the errno.
pub(crate) fn value(result: libc::c_long) -> io::Result<i32> {
    unit(result)?;
    i32::try_from(result).map_err(io::Error::other)
}

/// A new descriptor, or the errno.
pub(crate) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = value(result)?;
    // SAFETY: a non-negative result of the calls passed here is a new descriptor nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes a number that no type owns. Async-signal-safe.
pub(crate) fn close(fd: i32) {
    // SAFETY: callers pass a number they opened themselves and use no more.
    unsafe { libc::close(fd) };
}
