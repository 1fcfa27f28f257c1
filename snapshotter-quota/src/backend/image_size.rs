//! How large an image may be, and how large the file system in one is: a growth that was
//! interrupted leaves a file and what is in it apart. It must not mount anything.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use snapshot_core::{Error, Result};
use sys::filesystem;

use super::{Fs, directories};

/// 16 TiB less a block: the largest file of ext4, and as many blocks as 32 bits count.
const BYTES_MAX: u64 = (1 << 44) - BLOCK_BYTES;

const BLOCK_BYTES: u64 = 4096;

/// Refuses what no image can be.
pub(super) fn check(bytes: u64) -> Result<()> {
    match bytes <= BYTES_MAX {
        true => Ok(()),
        false => Err(too_large(bytes, BYTES_MAX)),
    }
}

/// Makes a file that long, with holes.
///
/// # Errors
/// [`Error::Invalid`] has the largest size when the host's file system takes no file of that one;
/// the file is as it was then.
pub(super) fn set_length(file: &File, path: &Path, bytes: u64) -> Result<()> {
    let failed = || Error::io("size", path);
    let before = file.metadata().map_err(failed())?.len();
    match file.set_len(bytes) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            let largest = largest(before, bytes, |bytes| file.set_len(bytes).is_ok());
            file.set_len(before).map_err(failed())?;
            Err(too_large(bytes, largest))
        }
        other => other.map_err(failed()),
    }
}

/// In whole blocks, between what is possible and what is not.
fn largest(possible: u64, impossible: u64, is_possible: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (possible / BLOCK_BYTES, impossible / BLOCK_BYTES + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match is_possible(middle * BLOCK_BYTES) {
            true => low = middle,
            false => high = middle,
        }
    }
    low * BLOCK_BYTES
}

fn too_large(asked: u64, largest: u64) -> Error {
    Error::Invalid(format!(
        "an image cannot have {asked} bytes: at most {largest} are taken here"
    ))
}

/// Bytes of the file system that is mounted at `place` from `device`.
pub(super) fn of_file_system(fs: Fs, place: &Path, device: &Path) -> Result<u64> {
    match fs {
        Fs::Xfs => filesystem::xfs_bytes(&directories::open(place)?)
            .map_err(Error::io("measure the file system at", place)),
        Fs::Ext4 => {
            let mut block = [0; SUPER_BYTES];
            File::open(device)
                .and_then(|device| device.read_exact_at(&mut block, SUPER_OFFSET))
                .map_err(Error::io("read", device))?;
            ext4_bytes(&block).ok_or_else(|| {
                let nothing = io::Error::from(io::ErrorKind::InvalidData);
                Error::io("find an ext4 on", device)(nothing)
            })
        }
    }
}

/// `struct ext4_super_block` (Documentation/filesystems/ext4/super.rst): where it is, and up to
/// which field it is looked at.
const SUPER_OFFSET: u64 = 1024;
const SUPER_BYTES: usize = 0x154;
const EXT4_SUPER_MAGIC: u64 = 0xef53;

/// `s_blocks_count_lo` and `_hi`, in blocks of 1 KiB shifted by `s_log_block_size`.
fn ext4_bytes(block: &[u8; SUPER_BYTES]) -> Option<u64> {
    let number = |at: usize, bytes: usize| {
        let little_endian = block[at..at + bytes].iter().rev();
        little_endian.fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    if number(0x38, 2) != EXT4_SUPER_MAGIC {
        return None;
    }
    let blocks = number(0x150, 4) << 32 | number(0x4, 4);
    blocks.checked_mul(1024 << number(0x18, 4).min(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_possible_size_is_found_to_the_block() {
        let check = |possible, limit: u64, impossible| {
            let found = largest(possible, impossible, |bytes| bytes <= limit);
            assert_eq!(found, limit / BLOCK_BYTES * BLOCK_BYTES);
        };
        check(0, BYTES_MAX, u64::MAX / 2);
        check(1 << 20, 1 << 20, 1 << 21);
        check(0, 5 * BLOCK_BYTES + 1, 6 * BLOCK_BYTES);
        check(0, 0, 1);
    }

    #[test]
    fn size_of_ext4_is_read_from_its_super_block() {
        let mut block = [0; SUPER_BYTES];
        assert_eq!(ext4_bytes(&block), None);
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        block[0x18] = 2;
        block[0x4..0x8].copy_from_slice(&8192_u32.to_le_bytes());
        assert_eq!(ext4_bytes(&block), Some(32 << 20));
        block[0x150] = 1;
        assert_eq!(ext4_bytes(&block), Some((1 << 44) + (32 << 20)));
    }
}
