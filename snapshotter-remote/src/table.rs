//! The table of a blob or of metadata: which chunk has which blocks. The only way to write one is the
//! one that is read.

use std::io::{self, Read, Write};

use disk::BLOCK_BYTES;

use crate::{
    chunk::{self, ChunkId},
    error::{Error, Result},
    fields::{self, Fields},
};

/// Pieces that a table may have: 64 GiB of the shortest chunks, and five times as much of ordinary ones.
pub const PIECES_MAX: usize = 1 << 20;

/// Length that the bytes of a table may have.
pub const BYTES_MAX: usize = 4 + 36 * PIECES_MAX;

/// What marks the length of a hole.
const HOLE: u32 = 1 << 31;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Blocks that a chunk has.
    Chunk {
        /// Its name.
        id: ChunkId,
        /// 1 to [`chunk::BLOCKS_MAX`].
        blocks: u32,
    },
    /// Blocks of zeros, which are nowhere. Two of these never meet.
    Hole {
        /// At least 1.
        blocks: u32,
    },
}

/// Chunks and holes one behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// From the first block on.
    pieces: Vec<Piece>,
    blocks: u32,
}

impl Piece {
    /// Its length.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        match *self {
            Self::Chunk { blocks, .. } | Self::Hole { blocks } => blocks,
        }
    }
}

impl Table {
    /// Of these pieces.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(pieces: Vec<Piece>) -> Result<Self, &'static str> {
        if pieces.len() > PIECES_MAX {
            return Err("it has more pieces than a table may have");
        }
        let mut all_blocks: u32 = 0;
        let mut was_hole = false;
        for piece in &pieces {
            let blocks = piece.blocks();
            let is_hole = matches!(piece, Piece::Hole { .. });
            let most = if is_hole { HOLE - 1 } else { chunk::BLOCKS_MAX };
            if blocks == 0 || blocks > most || is_hole && was_hole {
                return Err("it has pieces that nobody cuts");
            }
            was_hole = is_hole;
            all_blocks = all_blocks
                .checked_add(blocks)
                .ok_or("it has more blocks than a disk")?;
        }
        Ok(Self {
            pieces,
            blocks: all_blocks,
        })
    }

    /// Chunks and holes, from the first block on.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Length of all pieces.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// All chunks, with their lengths in blocks.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkId, u32)> {
        self.pieces.iter().filter_map(|piece| match *piece {
            Piece::Chunk { id, blocks } => Some((id, blocks)),
            Piece::Hole { .. } => None,
        })
    }

    /// What its bytes are named by in manifests.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        *blake3::hash(&bytes).as_bytes()
    }

    /// The table of these bytes, if they are those that the digest in a manifest promises.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn open(object: &str, bytes: &[u8], digest: [u8; 32]) -> Result<Self> {
        if blake3::hash(bytes) != digest {
            let what = "its contents are others than its name says";
            return Err(Error::damaged(object, what));
        }
        let mut fields = Fields::new(object, bytes);
        let table = Self::decode(&mut fields)?;
        fields.finish()?;
        Ok(table)
    }

    /// Writes everything the table stands for, verified chunk by chunk.
    ///
    /// # Errors
    /// What `stored` answers, [`Error::Damaged`] for what is not the chunk asked for, and
    /// [`Error::Write`].
    pub fn restore(
        &self,
        mut stored: impl FnMut(ChunkId) -> Result<Vec<u8>>,
        mut out: impl Write,
    ) -> Result<()> {
        for piece in &self.pieces {
            match *piece {
                Piece::Chunk { id, blocks } => {
                    let contents = chunk::open(&stored(id)?, id, blocks)?;
                    out.write_all(&contents).map_err(Error::Write)?;
                }
                Piece::Hole { blocks } => {
                    let zeros = io::repeat(0).take(u64::from(blocks) * BLOCK_BYTES);
                    io::copy(&mut { zeros }, &mut out).map_err(Error::Write)?;
                }
            }
        }
        Ok(())
    }

    /// How many pieces; for each its length, and for a chunk its name.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&fields::count(self.pieces.len()));
        for piece in &self.pieces {
            match piece {
                Piece::Chunk { id, blocks } => {
                    out.extend_from_slice(&blocks.to_le_bytes());
                    out.extend_from_slice(&id.0);
                }
                Piece::Hole { blocks } => {
                    out.extend_from_slice(&(blocks | HOLE).to_le_bytes());
                }
            }
        }
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        let count = fields.count(4)?;
        let mut pieces = Vec::with_capacity(count.min(PIECES_MAX));
        for _ in 0..count {
            let length = fields.number()?;
            pieces.push(if length & HOLE == 0 {
                let id = ChunkId(fields.array()?);
                Piece::Chunk { id, blocks: length }
            } else {
                let blocks = length ^ HOLE;
                Piece::Hole { blocks }
            });
        }
        Self::new(pieces).map_err(|what| fields.damaged(what))
    }
}
