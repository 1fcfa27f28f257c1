//! The flat form of a disk of a store as one run of bytes, for who reads a few of them at a time. It says which chunk has them
//! and reads none.

use disk::{BLOCK_BYTES, Digest};

use super::{Reader, name::Name};
use crate::{
    error::{Error, Result},
    signature,
    table::{self, PIECES_MAX, Piece, Table},
};

/// Metadata and blobs, one behind the other, of a manifest that the store's key has signed.
#[derive(Debug, Default)]
pub struct FlatDisk {
    /// Each with its first block.
    pieces: Vec<(u32, Piece)>,
    blocks: u32,
}

const _: () = assert!(
    size_of::<(u32, Piece)>() == 44,
    "so many bytes each takes, says docs/remote.md"
);

/// The piece that has a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The piece.
    pub piece: Piece,
    /// Bytes of it before that one.
    pub before: u64,
    /// Bytes of it from that one on.
    pub left: u64,
}

impl FlatDisk {
    /// Of the manifest and the tables that it names, all verified.
    ///
    /// # Errors
    /// What is missing, damaged or not signed with the store's key, and [`Error::Limit`] for a disk of more than [`PIECES_MAX`]
    /// pieces, which bounds the memory that it takes (44 bytes for each).
    pub fn open(reader: &Reader, chain_id: Digest) -> Result<Self> {
        let signed = reader.get(Name::Disk(chain_id), signature::BYTES_MAX)?;
        let manifest = signature::open(&signed, chain_id, &[reader.key()?])?;
        let mut this = Self::default();
        this.push(&manifest.flat_metadata)?;
        for device in &manifest.devices {
            let name = Name::Table(device.table);
            let bytes = reader.get(name, table::BYTES_MAX)?;
            this.push(&device.open_table(&name.to_string(), &bytes)?)?;
        }
        // It stays as long as somebody has it open.
        this.pieces.shrink_to_fit();
        Ok(this)
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES
    }

    /// What has the byte at `offset`, which it must have.
    ///
    /// # Panics
    /// For an offset behind its end.
    #[must_use]
    pub fn part(&self, offset: u64) -> Part {
        let block = offset / BLOCK_BYTES;
        let behind = self
            .pieces
            .partition_point(|(start, _)| u64::from(*start) <= block);
        let index = behind.checked_sub(1).expect("the first piece begins at 0");
        let (start, piece) = self.pieces[index];
        let before = offset - u64::from(start) * BLOCK_BYTES;
        let left = (u64::from(piece.blocks()) * BLOCK_BYTES).checked_sub(before);
        Part {
            piece,
            before,
            left: left.expect("the disk has that byte"),
        }
    }

    fn push(&mut self, table: &Table) -> Result<()> {
        if self.pieces.len() + table.pieces().len() > PIECES_MAX {
            return Err(Error::Limit {
                what: "pieces of a disk that is read as one",
                limit: PIECES_MAX as u64,
            });
        }
        for piece in table.pieces() {
            self.pieces.push((self.blocks, *piece));
            // No manifest has more.
            self.blocks += piece.blocks();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkId;

    #[test]
    fn each_byte_is_of_the_piece_that_has_it() {
        let chunk = |first, blocks| Piece::Chunk {
            id: ChunkId([first; 32]),
            blocks,
        };
        let hole = Piece::Hole { blocks: 20 };
        let mut disk = FlatDisk::default();
        disk.push(&Table::new(vec![chunk(1, 2)]).unwrap()).unwrap();
        disk.push(&Table::new(vec![chunk(2, 1), hole, chunk(3, 1)]).unwrap())
            .unwrap();
        assert_eq!(disk.bytes(), 24 * 4096);
        let check = |offset, piece: Piece, before| {
            let left = u64::from(piece.blocks()) * 4096 - before;
            let expected = Part {
                piece,
                before,
                left,
            };
            assert_eq!(disk.part(offset), expected, "{offset}");
        };
        check(0, chunk(1, 2), 0);
        check(8191, chunk(1, 2), 8191);
        check(8192, chunk(2, 1), 0);
        check(3 * 4096 + 5, hole, 5);
        check(23 * 4096, chunk(3, 1), 0);
        check(24 * 4096 - 1, chunk(3, 1), 4095);
    }
}
