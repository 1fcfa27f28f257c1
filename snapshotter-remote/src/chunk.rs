//! A chunk: a run of blocks under the name of its contents. The one place where bytes of a store become
//! bytes of a disk.

use std::fmt;

use disk::BLOCK_BYTES;

use crate::error::{Error, Result};

/// Blocks of the longest chunk: 1 MiB.
pub const BLOCKS_MAX: u32 = 256;

/// Bytes of the longest chunk.
pub const BYTES_MAX: usize = 1 << 20;

/// Bytes that a stored chunk may have: zstd's bound for what it cannot make smaller is far below.
pub const STORED_BYTES_MAX: usize = BYTES_MAX + (64 << 10);

/// A middle between time and length; what other levels make has the same names.
const LEVEL: i32 = 3;

/// The BLAKE3 of a chunk's contents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The name of these contents.
    #[must_use]
    pub fn of(contents: &[u8]) -> Self {
        Self(*blake3::hash(contents).as_bytes())
    }
}

impl fmt::Display for ChunkId {
    /// 64 lowercase hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&disk::Digest(self.0), f)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Contents as they are stored and sent.
///
/// # Errors
/// [`Error::Compress`].
pub fn seal(contents: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(contents, LEVEL).map_err(Error::Compress)
}

/// The contents of a stored chunk, if they are those that the name promises.
///
/// # Errors
/// [`Error::Damaged`]. Whatever the bytes are, not more memory is used than for `blocks` blocks.
pub fn open(stored: &[u8], id: ChunkId, blocks: u32) -> Result<Vec<u8>> {
    let damaged = |what| Error::damaged(format!("chunk {id}"), what);
    if blocks > BLOCKS_MAX {
        return Err(damaged("it is said to be longer than chunks are"));
    }
    let bytes = u64::from(blocks) * BLOCK_BYTES;
    let bytes = usize::try_from(bytes).expect("a chunk is short");
    let mut contents = vec![0; bytes];
    let filled = zstd::bulk::decompress_to_buffer(stored, &mut contents[..])
        .map_err(|_its_words| damaged("it is no zstd, or longer than said"))?;
    if filled != bytes {
        return Err(damaged("it is shorter than said"));
    }
    if ChunkId::of(&contents) != id {
        return Err(damaged("its contents are others than its name says"));
    }
    Ok(contents)
}

/// Whether a stored chunk is what its name promises, whatever its length; its length in bytes comes
/// back.
///
/// # Errors
/// [`Error::Damaged`].
pub(crate) fn verify(stored: &[u8], id: ChunkId) -> Result<u64> {
    let damaged = |what| Error::damaged(format!("chunk {id}"), what);
    let contents = zstd::bulk::decompress(stored, BYTES_MAX)
        .map_err(|_its_words| damaged("it is no zstd, or longer than chunks are"))?;
    if ChunkId::of(&contents) != id {
        return Err(damaged("its contents are others than its name says"));
    }
    Ok(u64::try_from(contents.len()).expect("a chunk is short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(blocks: usize) -> Vec<u8> {
        (0..=250).cycle().take(blocks * 4096).collect()
    }

    #[test]
    fn what_was_stored_comes_back() {
        for blocks in [1, 17, 256] {
            let contents = contents(blocks);
            let stored = seal(&contents).unwrap();
            assert!(stored.len() < contents.len());
            let id = ChunkId::of(&contents);
            assert_eq!(
                open(&stored, id, u32::try_from(blocks).unwrap()).unwrap(),
                contents
            );
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let contents = contents(2);
        let id = ChunkId::of(&contents);
        let stored = seal(&contents).unwrap();
        for at in 0..stored.len() {
            let mut flipped = stored.clone();
            flipped[at] ^= 1 << (at % 8);
            // What means the same to zstd (an unused bit of its header) is no wrong byte.
            if let Ok(opened) = open(&flipped, id, 2) {
                assert_eq!(opened, contents);
            }
        }
        let mut other = contents.clone();
        other[5000] ^= 1;
        let error = open(&seal(&other).unwrap(), id, 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("chunk {id} is damaged: its contents are others than its name says")
        );
    }

    #[test]
    fn a_chunk_of_another_length_is_refused_within_its_memory() {
        let contents = contents(2);
        let id = ChunkId::of(&contents);
        let stored = seal(&contents).unwrap();
        let check = |stored: &[u8], blocks, what: &str| {
            let error = open(stored, id, blocks).unwrap_err().to_string();
            assert!(error.ends_with(what), "{error}");
        };
        check(&stored, 1, "it is no zstd, or longer than said");
        check(&stored, 3, "it is shorter than said");
        check(&stored, 257, "it is said to be longer than chunks are");
        check(&[], 2, "it is shorter than said");
        check(b"no zstd", 2, "it is no zstd, or longer than said");
        // 64 MiB of zeros in a few kilobytes.
        let bomb = zstd::bulk::compress(&vec![0; 1 << 26], 19).unwrap();
        assert!(bomb.len() < 10_000);
        check(&bomb, 2, "it is no zstd, or longer than said");
    }
}
