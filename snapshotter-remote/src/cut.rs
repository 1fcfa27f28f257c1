//! Where a blob or metadata is cut into chunks. It depends on the contents alone, so the same file in
//! another layer is, but for its ends, the same chunks.
//!
//! Files begin on blocks, so what moves between two layers moves by whole blocks: it is enough to ask
//! each block whether a chunk ends behind it.

use std::io::Read;

use disk::BLOCK_BYTES;

use crate::{
    chunk::{BLOCKS_MAX, BYTES_MAX, ChunkId},
    error::{Error, Result},
    table::{PIECES_MAX, Piece, Table},
};

/// No end is looked for in the first blocks of a chunk: 64 KiB, but for the block that completes them.
const BLOCKS_MIN: usize = 16;

/// So many blocks of zeros on end, since the last cut, are a hole.
const HOLE_BLOCKS_MIN: usize = 16;

const BLOCK: usize = 4096;

/// What was read since the last cut.
struct Cutter<F> {
    buffer: Vec<u8>,
    /// How many blocks of zeros the buffer ends with.
    zeros: usize,
    pieces: Vec<Piece>,
    take: F,
}

/// Cuts so many blocks and gives each chunk to `take`, with its name.
///
/// # Errors
/// [`Error::Read`], also for a source that is too short; [`Error::Limit`] for one that is too long; what
/// `take` answers.
pub fn cut(
    mut source: impl Read,
    blocks: u32,
    take: impl FnMut(ChunkId, &[u8]) -> Result<()>,
) -> Result<Table> {
    const { assert!(BLOCK as u64 == BLOCK_BYTES && BYTES_MAX == BLOCKS_MAX as usize * BLOCK) };
    let mut cutter = Cutter {
        buffer: Vec::with_capacity(BYTES_MAX),
        zeros: 0,
        pieces: Vec::new(),
        take,
    };
    let mut block = [0; BLOCK];
    for _ in 0..blocks {
        source.read_exact(&mut block).map_err(Error::Read)?;
        cutter.block(&block)?;
    }
    cutter.chunk()?;
    let table = Table::new(cutter.pieces);
    Ok(table.expect("a cut is made by the rules"))
}

impl<F: FnMut(ChunkId, &[u8]) -> Result<()>> Cutter<F> {
    fn block(&mut self, block: &[u8; BLOCK]) -> Result<()> {
        if block == &[0; BLOCK] {
            return self.zeros();
        }
        self.zeros = 0;
        self.buffer.extend_from_slice(block);
        let is_long = self.buffer.len() >= BLOCKS_MIN * BLOCK;
        if self.buffer.len() == BYTES_MAX || is_long && is_end(block) {
            self.chunk()?;
        }
        Ok(())
    }

    fn zeros(&mut self) -> Result<()> {
        if let Some(Piece::Hole { blocks }) = self.pieces.last_mut()
            && self.buffer.is_empty()
        {
            *blocks += 1;
            return Ok(());
        }
        self.zeros += 1;
        self.buffer.resize(self.buffer.len() + BLOCK, 0);
        if self.zeros == HOLE_BLOCKS_MIN {
            self.buffer
                .truncate(self.buffer.len() - HOLE_BLOCKS_MIN * BLOCK);
            self.chunk()?;
            let blocks = u32::try_from(HOLE_BLOCKS_MIN).expect("it is small");
            return self.push(Piece::Hole { blocks });
        }
        if self.buffer.len() == BYTES_MAX {
            self.chunk()?;
        }
        Ok(())
    }

    /// Ends the chunk, if it has begun.
    fn chunk(&mut self) -> Result<()> {
        self.zeros = 0;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let id = ChunkId::of(&self.buffer);
        (self.take)(id, &self.buffer)?;
        let blocks = u32::try_from(self.buffer.len() / BLOCK).expect("a chunk is short");
        self.buffer.clear();
        self.push(Piece::Chunk { id, blocks })
    }

    fn push(&mut self, piece: Piece) -> Result<()> {
        if self.pieces.len() == PIECES_MAX {
            return Err(Error::Limit {
                what: "chunks and holes in a layer",
                limit: PIECES_MAX as u64,
            });
        }
        self.pieces.push(piece);
        Ok(())
    }
}

/// One block in 64, whatever is before and behind it.
fn is_end(block: &[u8; BLOCK]) -> bool {
    blake3::hash(block).as_bytes()[0] < 4
}
