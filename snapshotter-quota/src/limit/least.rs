//! The least that a new snapshot can be limited to.

use super::{Limit, Mode, Refusal};

/// Bytes: a subvolume with two directories takes 96 KiB of them.
const BYTES_MIN: u64 = 128 << 10;

/// Inodes: the directories of a snapshot, and those that overlay makes at each mount.
const INODES_MIN: u64 = 16;

/// Refuses a limit under which overlay could not make its own directories.
///
/// # Errors
/// [`Refusal::TooSmall`] with the least.
pub fn refuse_too_small(limit: &Limit) -> Result<(), Refusal> {
    if limit.mode != Mode::Hard {
        return Ok(());
    }
    let bytes = limit.bytes.filter(|size| size.bytes().get() < BYTES_MIN);
    let inodes = limit.inodes.map(|inodes| inodes.count().get());
    let (what, value, least) = match (bytes, inodes.filter(|count| *count < INODES_MIN)) {
        (Some(size), _) => ("size", size.to_string(), BYTES_MIN),
        (None, Some(count)) => ("number of inodes", count.to_string(), INODES_MIN),
        (None, None) => return Ok(()),
    };
    Err(Refusal::TooSmall { what, value, least })
}
