//! Descriptors of our caller that a container's process keeps: from 3 up, without a gap
//! (`--preserve-fds`, sd_listen_fds(3)).

use sys::Spawn;

use crate::{Error, Result};

/// First descriptor after standard error.
const FIRST: i32 = 3;

/// The first number after so many of them.
pub(crate) fn end(count: u32) -> i32 {
    FIRST.saturating_add_unsigned(count).min(i32::MAX - 8)
}

/// Lets a program have so many of them, under their own numbers; they are gone from here.
///
/// # Errors
/// The first that is not open.
pub(crate) fn pass_on(mut spawn: Spawn<'_>, count: u32) -> Result<Spawn<'_>> {
    for fd in FIRST..end(count) {
        let kept =
            sys::take_inherited_fd(fd).map_err(Error::io(format!("preserved descriptor {fd}")))?;
        spawn = spawn.fd(fd, kept);
    }
    Ok(spawn)
}
