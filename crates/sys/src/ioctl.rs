//! ioctl(2) with one struct of the kernel's as its argument; must not know any request.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::raw;

/// Makes a request; gives the kernel's non-negative answer.
///
/// # Safety
/// `request` must be one that takes a pointer to a `T`, and either only reads it or leaves a valid
/// `T` there. Addresses inside it must be valid for what the request does with them.
pub(crate) unsafe fn with<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: &mut T,
) -> io::Result<i32> {
    // SAFETY: `argument` outlives the call; the rest is the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    raw::value(result.into())
}

/// Makes a request that takes a number, or nothing, and touches no memory of ours.
///
/// # Safety
/// `request` must be such a one: for any other the number is an address.
pub(crate) unsafe fn with_number(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    number: libc::c_ulong,
) -> io::Result<i32> {
    // SAFETY: the caller promises that the number is no address.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, number) };
    raw::value(result.into())
}
