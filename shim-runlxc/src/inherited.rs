//! Descriptors of our caller that a container's process keeps: from 3 up, without a gap
//! (`--preserve-fds`, sd_listen_fds(3)).

use nix::errno::Errno;
use sys::Spawn;

use crate::{Error, Result};

/// First descriptor after standard error.
const FIRST: i32 = 3;

/// The first number after so many of them.
pub(crate) fn end(count: u32) -> i32 {
    FIRST.saturating_add_unsigned(count).min(i32::MAX - 8)
}

/// Lets a program have so many of them, under their own numbers; they are gone from here. Those that
/// are not open stay so, as with crun: whoever counts to the highest may have gaps below it.
///
/// # Errors
/// One that cannot be taken over.
pub(crate) fn pass_on(mut spawn: Spawn<'_>, count: u32) -> Result<Spawn<'_>> {
    for fd in FIRST..end(count) {
        match sys::take_inherited_fd(fd) {
            Ok(kept) => spawn = spawn.fd(fd, kept),
            Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => {}
            Err(error) => return Err(Error::io(format!("preserved descriptor {fd}"))(error)),
        }
    }
    Ok(spawn)
}
