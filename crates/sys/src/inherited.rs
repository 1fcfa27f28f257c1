//! Descriptors that a program was started with; must not touch any that it made itself.
//!
//! All that this program opens is close-on-exec, and what came through execve(2) cannot be: the
//! flag tells whose a descriptor is, so that nothing here takes one that has an owner.

use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::{process, raw};

/// Takes over a descriptor that the parent passed under this number, and marks it close-on-exec.
///
/// # Errors
/// EBADF when nothing was passed under it, or it was taken already.
pub fn take_inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST || !was_inherited(number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD takes numbers and touches no memory.
    raw::unit(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: open, and without an owner here: it came through execve and was not taken before.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The numbers in this range (3 or above), in order, under which the parent passed something that nobody
/// took over. As many looks as there are descriptors, however long the range is.
///
/// # Errors
/// What keeps it from looking.
pub fn inherited_numbers(range: Range<RawFd>) -> io::Result<Vec<RawFd>> {
    let mut numbers = open_numbers()?;
    numbers.retain(|&number| number >= FIRST && range.contains(&number) && was_inherited(number));
    numbers.sort_unstable();
    Ok(numbers)
}

/// Closes what the parent passed from this number up (3 at least) and nobody took over.
pub fn close_inherited_from(first: RawFd) -> io::Result<()> {
    inherited_numbers(first..RawFd::MAX).map(|numbers| numbers.into_iter().for_each(raw::close))
}

/// By number, since the C libraries disagree on its type.
const RLIMIT_NOFILE: u32 = 7;

/// The first number that is no standard stream.
const FIRST: RawFd = 3;

fn was_inherited(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes a number and touches no memory; -1 when it is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags == 0
}

/// Numbers that are or may be open: what `/proc/self/fd` lists, else all below the limit.
fn open_numbers() -> io::Result<Vec<RawFd>> {
    const CEILING: u64 = 1 << 20;
    if let Ok(listed) = std::fs::read_dir("/proc/self/fd") {
        let number =
            |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        return Ok(listed.filter_map(number).collect());
    }
    let (limit, _) = process::getrlimit_raw(RLIMIT_NOFILE)?;
    Ok((0..RawFd::try_from(limit.min(CEILING)).unwrap_or(RawFd::MAX)).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    /// A descriptor as execve leaves it, without an owner.
    fn inherited() -> RawFd {
        let (reader, _writer) = crate::pipe_cloexec().unwrap();
        nix::fcntl::fcntl(
            &reader,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        reader.into_raw_fd()
    }

    #[test]
    fn what_was_passed_is_taken_once_and_what_was_made_here_never() {
        let (made_here, _writer) = crate::pipe_cloexec().unwrap();
        let number = inherited();
        let others = [made_here.as_raw_fd(), -1, 2];
        let listed = |range| inherited_numbers(range).unwrap();
        assert_eq!(listed(number..number + 1), [number]);
        assert!(!listed(0..RawFd::MAX).iter().any(|it| others.contains(it)));
        let taken = take_inherited_fd(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert_eq!(listed(number..number + 1), []);
        for refused in [number, made_here.as_raw_fd(), -1, 2, 100_000] {
            let error = take_inherited_fd(refused).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{refused}");
        }
    }
}
