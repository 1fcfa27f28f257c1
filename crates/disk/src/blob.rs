//! The data blob of a layer while it is written: file after file, each from a new block on.

use std::io::{Seek, SeekFrom, Write};

use crate::{
    BLOCK_BYTES,
    error::{Error, Result},
};

/// Bytes that are gathered before they are written; all the memory that contents take.
const BUFFER_BYTES: usize = 1 << 20;

/// A blob that is being written.
#[derive(Debug)]
pub(crate) struct BlobWriter<W> {
    out: W,
    buffer: Box<[u8]>,
    /// How much of the buffer is used.
    filled: usize,
    /// Where the buffer's first byte belongs.
    buffer_offset: u64,
    /// Where `out` stands.
    out_offset: u64,
    /// Where the next file begins, in bytes.
    end: u64,
    bytes_max: u64,
}

impl<W: Write + Seek> BlobWriter<W> {
    /// Into something empty: what is never written must read as zeros.
    pub(crate) fn new(out: W, bytes_max: u64) -> Self {
        Self {
            out,
            buffer: vec![0; BUFFER_BYTES].into(),
            filled: 0,
            buffer_offset: 0,
            out_offset: 0,
            end: 0,
            bytes_max,
        }
    }

    /// Makes room for a file of that length and says in which block it begins; nothing when the
    /// blob would be too long.
    pub(crate) fn begin(&mut self, bytes: u64) -> Option<u32> {
        let first_block = u32::try_from(self.end / BLOCK_BYTES).ok()?;
        let end = self.end.checked_add(bytes)?;
        let end = end.checked_next_multiple_of(BLOCK_BYTES)?;
        if end > self.bytes_max || u32::try_from(end / BLOCK_BYTES).is_err() {
            return None;
        }
        self.end = end;
        Some(first_block)
    }

    /// Writes what `read` gives until it has no more, from `offset` of the blob on.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        self.move_to(offset)?;
        loop {
            if self.filled == BUFFER_BYTES {
                self.flush()?;
            }
            match read(&mut self.buffer[self.filled..])? {
                0 => return Ok(()),
                count => self.filled += count,
            }
        }
    }

    /// Writes what is left; the length in blocks comes back.
    pub(crate) fn finish(mut self) -> Result<u32> {
        self.flush()?;
        if self.out_offset < self.end {
            // The last byte gives the blob its length, whatever is before it.
            self.buffer_offset = self.end - 1;
            self.add_zeros(1)?;
            self.flush()?;
        }
        self.out.flush().map_err(Error::Write)?;
        Ok(u32::try_from(self.end / BLOCK_BYTES).expect("begin has seen to it"))
    }

    fn position(&self) -> u64 {
        self.buffer_offset + length(self.filled)
    }

    /// Zeros up to there, or, for a block and more, a hole.
    fn move_to(&mut self, offset: u64) -> Result<()> {
        let gap = offset - self.position();
        if gap < BLOCK_BYTES {
            return self.add_zeros(usize::try_from(gap).expect("less than a block"));
        }
        self.flush()?;
        self.buffer_offset = offset;
        Ok(())
    }

    fn add_zeros(&mut self, count: usize) -> Result<()> {
        if self.filled + count > BUFFER_BYTES {
            self.flush()?;
        }
        self.buffer[self.filled..self.filled + count].fill(0);
        self.filled += count;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        if self.out_offset != self.buffer_offset {
            let to = SeekFrom::Start(self.buffer_offset);
            self.out.seek(to).map_err(Error::Write)?;
        }
        let bytes = &self.buffer[..self.filled];
        self.out.write_all(bytes).map_err(Error::Write)?;
        self.buffer_offset += length(self.filled);
        self.out_offset = self.buffer_offset;
        self.filled = 0;
        Ok(())
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn files_begin_on_blocks_and_holes_are_skipped() {
        let mut out = Cursor::new(Vec::new());
        let mut blob = BlobWriter::new(&mut out, 1 << 20);
        let put = |blob: &mut BlobWriter<_>, offset, bytes: &[u8]| {
            let mut rest = bytes;
            blob.write(offset, |buffer| {
                // A few bytes at a time, as a decompressor gives them.
                let count = rest.len().min(3);
                buffer[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok(count)
            })
            .unwrap();
        };
        assert_eq!(blob.begin(5), Some(0));
        put(&mut blob, 0, b"first");
        assert_eq!(blob.begin(0), Some(1));
        assert_eq!(blob.begin(20480), Some(1));
        put(&mut blob, 4096 + 12288, b"late");
        assert_eq!(blob.begin(1), Some(6));
        put(&mut blob, 6 * 4096, b"x");
        assert_eq!(blob.begin(1 << 20), None);
        assert_eq!(blob.begin(u64::MAX), None);
        // A hole at the end, and an empty file behind it.
        assert_eq!(blob.begin(8192), Some(7));
        assert_eq!(blob.begin(0), Some(9));
        put(&mut blob, 9 * 4096, b"");
        assert_eq!(blob.finish().unwrap(), 9);
        let mut expected = vec![0; 9 * 4096];
        expected[..5].copy_from_slice(b"first");
        expected[16384..16388].copy_from_slice(b"late");
        expected[24576] = b'x';
        assert_eq!(out.into_inner(), expected);
    }
}
