//! Descriptors of our caller that a container's process keeps: from 3 up (`--preserve-fds`,
//! sd_listen_fds(3)). Whoever counts to the highest may have gaps below it, which stay gaps.

use nix::errno::Errno;
use sys::Spawn;

use crate::{Error, Result};

/// First descriptor after standard error.
const FIRST: i32 = 3;

/// The first number after so many of them.
pub(crate) fn end(count: u32) -> i32 {
    FIRST.saturating_add_unsigned(count).min(i32::MAX - 8)
}

/// How many numbers it takes up to the highest open one of so many: what the caller counted beyond it
/// is not there, and may be any number.
///
/// # Errors
/// What keeps it from looking.
pub(crate) fn present(count: u32) -> Result<u32> {
    Ok(numbers(count)?
        .last()
        .map_or(0, |&highest| count_to(highest)))
}

/// Those of so many numbers under which there is none. lxc-start keeps some descriptors of its own open
/// for what it starts, and they may get these numbers.
///
/// # Errors
/// What keeps it from looking.
pub(crate) fn gaps(count: u32) -> Result<Vec<i32>> {
    Ok(between(&numbers(count)?))
}

/// Lets a program have so many of them, under their own numbers; they are gone from here. Those that
/// are not open stay so, as with crun.
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

fn numbers(count: u32) -> Result<Vec<i32>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    sys::inherited_numbers(FIRST..end(count)).map_err(Error::io("look for preserved descriptors"))
}

fn count_to(highest: i32) -> u32 {
    u32::try_from(highest - FIRST + 1).unwrap_or_default()
}

/// The numbers from the first up to the last of these that are none of them.
fn between(open: &[i32]) -> Vec<i32> {
    let highest = open.last().copied().unwrap_or(FIRST);
    (FIRST..highest)
        .filter(|fd| open.binary_search(fd).is_err())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_has_gaps_and_an_end() {
        for (open, gaps, count) in [
            (&[][..], &[][..], 0),
            (&[3], &[], 1),
            (&[5], &[3, 4], 3),
            (&[3, 6, 7], &[4, 5], 5),
        ] {
            assert_eq!(between(open), gaps);
            assert_eq!(open.last().map_or(0, |&highest| count_to(highest)), count);
        }
    }

    #[test]
    fn a_count_beyond_all_descriptors_is_cut_at_the_highest() {
        let all = present(u32::MAX).unwrap();
        let end_of_all = end(all);
        assert!(end_of_all < 1 << 20, "{end_of_all}");
        assert_eq!(present(0).unwrap(), 0);
    }
}
