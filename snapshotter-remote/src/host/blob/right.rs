//! Whether what is here of a blob is what its table says. What is not is fetched again, to the same place: a reader that was let
//! pass before finds either what was there or what is right, never a hole, also when it cannot be fetched, as long as this daemon runs.

use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use snapshot_core::{Error, Result};

use super::{Blob, Fetching};
use crate::{
    chunk::ChunkId,
    host::{blob::Source, client::Patience},
    table::Piece,
};

impl Blob {
    /// How many chunks it has, and how many of them can be read.
    pub(in crate::host) fn chunks(&self) -> (usize, usize) {
        let all = self.table.chunks().count();
        (all, all - self.lock().missing)
    }

    /// Whether a chunk is what its digest says, read from the disk anew; nothing when it is not here, or goes meanwhile.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub(in crate::host) fn is_right(&self, index: usize) -> Result<Option<bool>> {
        let Piece::Chunk { id, .. } = self.table.pieces()[index] else {
            return Ok(None);
        };
        let Some(writer) = self.writer.get().filter(|_| self.is_here(index)) else {
            return Ok(None);
        };
        let range = self.range_of(index);
        let [at, count] = [range.start, range.end - range.start]
            .map(|number| i64::try_from(number).expect("a blob has 2^32 blocks at most"));
        // What the kernel has in memory may be right where the disk is not. What it does not drop is looked at there.
        let _kept = posix_fadvise(writer, at, count, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let bytes = usize::try_from(count).expect("a chunk is 1 MiB at most");
        let mut contents = vec![0; bytes];
        let read = writer.read_exact_at(&mut contents, range.start);
        let is_right = read.is_ok() && ChunkId::of(&contents) == id;
        Ok(self.is_here(index).then_some(is_right))
    }

    /// Fetches a chunk once more and writes it over what is there, whoever reads that: whether it did. Not while somebody takes it
    /// away or fetches it.
    ///
    /// # Errors
    /// What keeps it from being fetched or written.
    pub(in crate::host) fn replace(&self, index: usize, source: &dyn Source) -> Result<bool> {
        let Piece::Chunk { id, blocks } = self.table.pieces()[index] else {
            return Ok(false);
        };
        if !self.lock().fetching.insert(index) {
            return Ok(false);
        }
        let _fetching = Fetching { of: self, index };
        let contents = source.chunk(id, blocks, Patience::Deadline)?;
        let at = self.range_of(index).start;
        let writer = self.writer.get().expect("it was read by it");
        let written = writer
            .write_all_at(&contents, at)
            .and_then(|()| writer.sync_data());
        written.map_err(Error::io("write", self.path()))?;
        Ok(true)
    }

    fn is_here(&self, index: usize) -> bool {
        let state = self.lock();
        state.readable[index] && !state.fetching.contains(&index)
    }
}
