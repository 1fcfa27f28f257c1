//! Chunks of a blob that go from the cache again, also from under mounts.
//!
//! ```text
//!  readable --hide--> hidden --take_away--> out of the map, synced, punched --> absent
//!      ^                |
//!      +---spare--------+   who wants it meanwhile waits
//! ```
//!
//! Whoever hides sees to it first that nobody reads what is punched: docs/remote.md, What goes from the cache.

use std::{
    fs::OpenOptions,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
};

use disk::BLOCK_BYTES;
use nix::{
    fcntl::{FallocateFlags, fallocate},
    unistd::{Whence, lseek},
};
use snapshot_core::{Error, Result};

use super::{Blob, packed};
use crate::{
    host::{
        files,
        opens::{Opens, Reads},
    },
    table::Piece,
};

/// A chunk that may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) struct Idle {
    /// Which piece of the table.
    pub(in crate::host) index: usize,
    /// When it was used last; 0: not since the daemon has started.
    pub(in crate::host) used: u64,
}

/// Chunks that nobody can read: those that are not taken away can be read again when this is dropped.
#[derive(Debug)]
pub(in crate::host) struct Hidden<'a> {
    of: &'a Blob,
    pieces: Vec<usize>,
}

/// A blob is about to be mounted: as long as this is there, nothing of it goes.
#[derive(Debug)]
pub(in crate::host) struct Mounting<'a>(&'a Blob);

impl Blob {
    /// Chunks that are here, and when each was used.
    pub(in crate::host) fn idle(&self) -> Vec<Idle> {
        let state = self.lock();
        let pieces = self.table.pieces().iter().enumerate();
        let chunks = pieces.filter(|(_, piece)| matches!(piece, Piece::Chunk { .. }));
        let here = chunks.filter(|(index, _)| state.readable[*index]);
        let here = here.filter(|(index, _)| !state.fetching.contains(index));
        here.map(|(index, _)| Idle {
            index,
            used: state.used[index],
        })
        .collect()
    }

    /// Where a piece lies, in bytes.
    pub(in crate::host) fn range_of(&self, index: usize) -> Range<u64> {
        let [start, end] = [index, index + 1].map(|at| u64::from(self.starts[at]) * BLOCK_BYTES);
        start..end
    }

    /// Somebody is about to mount it.
    pub(in crate::host) fn begin_mounting(&self) -> Mounting<'_> {
        let mut state = self.lock();
        state.mounting += 1;
        state.mountings += 1;
        Mounting(self)
    }

    /// Whether somebody is.
    pub(in crate::host) fn is_being_mounted(&self) -> bool {
        self.lock().mounting > 0
    }

    /// How often it has begun to be mounted.
    pub(in crate::host) fn mountings(&self) -> u64 {
        self.lock().mountings
    }

    /// A mount of that device has the file open.
    ///
    /// # Errors
    /// What keeps that from being written down.
    pub(in crate::host) fn was_opened(&self, device: u64, reads: Reads) -> Result<()> {
        self.opens().add(&self.directory, device, reads)
    }

    /// The mount of that device is gone.
    ///
    /// # Errors
    /// What keeps that from being written down.
    pub(in crate::host) fn was_closed(&self, device: u64) -> Result<()> {
        self.opens().remove(&self.directory, device)
    }

    /// The devices of all mounts that have the file open, if the kernel tells of the reads of all of them.
    pub(in crate::host) fn told(&self) -> Option<Vec<u64>> {
        self.opens().told()
    }

    /// Whether a mount reads it whose reads the kernel tells of.
    pub(in crate::host) fn is_told_of(&self) -> bool {
        self.opens().has(Reads::Told)
    }

    /// Whether a mount reads it that the daemon gives its bytes.
    pub(in crate::host) fn is_served(&self) -> bool {
        self.opens().has(Reads::Served)
    }

    /// Nobody watches it now, so the file, opened anew, can be written without an event; if it is not known yet by what.
    pub(in crate::host) fn write_by_path(&self) {
        if !self.has_writer()
            && let Ok(file) = OpenOptions::new().read(true).write(true).open(self.path())
        {
            self.write_by(file);
        }
    }

    /// Hides these, as far as they can be read, if nobody has begun to mount the blob since `mountings`.
    pub(in crate::host) fn hide(&self, pieces: &[usize], mountings: u64) -> Option<Hidden<'_>> {
        let mut state = self.lock();
        if state.mounting > 0 || state.mountings != mountings || !self.has_writer() {
            return None;
        }
        let mut hidden = Vec::new();
        for &index in pieces {
            let is_chunk = matches!(self.table.pieces()[index], Piece::Chunk { .. });
            if is_chunk && state.readable[index] && state.fetching.insert(index) {
                state.readable[index] = false;
                state.missing += 1;
                hidden.push(index);
            }
        }
        Some(Hidden {
            of: self,
            pieces: hidden,
        })
    }

    fn opens(&self) -> MutexGuard<'_, Opens> {
        self.opens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what can be read, all of which is on the disk: in the file that is there, if there is one, so that a full disk has
    /// room for it. Of each bit what was there and what is written are both right.
    pub(super) fn place_map(&self, map: &[u8]) -> Result<()> {
        let path = self.directory.join("map");
        match OpenOptions::new().write(true).open(&path) {
            Ok(file)
                if file
                    .metadata()
                    .is_ok_and(|about| about.len() == map.len() as u64) =>
            {
                let written = file.write_all_at(map, 0).and_then(|()| file.sync_data());
                written.map_err(Error::io("write", &path))
            }
            // It is of another file, or there is none.
            _ => files::place(&path, map),
        }
    }

    /// Looks for chunks that an earlier daemon has written, and that it was killed before it wrote that down: they take room. Once.
    pub(in crate::host) fn find_more(&self) {
        if !self.may_have_more || !self.has_writer() || self.has_found.swap(true, Ordering::SeqCst)
        {
            return;
        }
        let unknown = self.all_missing();
        for index in unknown {
            let Piece::Chunk { id, .. } = self.table.pieces()[index] else {
                continue;
            };
            if !self.has_data(index) || !self.begin_looking(index) {
                continue;
            }
            let is_here = self.has_already(index, id);
            if !is_here {
                self.clear(index);
            }
            let mut state = self.lock();
            state.fetching.remove(&index);
            if is_here && !state.readable[index] {
                state.show(index);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Whether it is still missing, and nobody else has it in hand.
    fn begin_looking(&self, index: usize) -> bool {
        let mut state = self.lock();
        !state.readable[index] && state.fetching.insert(index)
    }

    pub(super) fn all_missing(&self) -> Vec<usize> {
        let state = self.lock();
        let pieces = state.readable.iter().enumerate();
        pieces
            .filter(|(_, is)| !**is)
            .map(|(index, _)| index)
            .collect()
    }

    /// Whether the file has something there.
    fn has_data(&self, index: usize) -> bool {
        let range = self.range_of(index);
        let (Some(writer), Ok(start)) = (self.writer.get(), i64::try_from(range.start)) else {
            return false;
        };
        // ENXIO: nothing but holes to the end.
        let at = lseek(writer, start, Whence::SeekData).ok();
        at.and_then(|at| u64::try_from(at).ok())
            .is_some_and(|at| at < range.end)
    }

    /// Takes away what is in the file of a piece of which never all was there, so that nobody was let read it; of one that was given
    /// up it stays, or who was let pass before would find a hole.
    pub(super) fn clear(&self, index: usize) {
        if !self.lock().given_up.contains(&index) {
            // What stays takes room, and nothing else.
            drop(self.punch(index));
        }
    }

    /// Takes what is in the file of a piece away.
    fn punch(&self, index: usize) -> io::Result<u64> {
        let range = self.range_of(index);
        let length = range.end - range.start;
        let [at, count] = [range.start, length]
            .map(|number| i64::try_from(number).expect("a blob has 2^32 blocks at most"));
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let writer = self.writer.get().expect("nothing is there without one");
        fallocate(writer, flags, at, count)?;
        Ok(length)
    }

    /// Sees to it that the map on the disk has nothing but what can be read. It only takes bits away, in the file that is there, so
    /// that a full disk has room for it, and either contents, or some of both, are right until it is synced.
    fn forget_in_map(&self) -> Result<()> {
        let _mine = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.join("map");
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(Error::io("open", &path))?,
        };
        let readable = packed(&self.lock().readable);
        let mut map = vec![0; readable.len()];
        let changed = file.read_exact_at(&mut map, 0).and_then(|()| {
            for (old, new) in map.iter_mut().zip(&readable) {
                *old &= new;
            }
            file.write_all_at(&map, 0)?;
            file.sync_data()
        });
        changed.map_err(Error::io("write", &path))
    }
}

impl Hidden<'_> {
    /// Which.
    pub(in crate::host) fn pieces(&self) -> &[usize] {
        &self.pieces
    }

    /// These can be read again.
    pub(in crate::host) fn spare(&mut self, spared: impl Fn(usize) -> bool) {
        let (spared, pieces) = self.pieces.iter().partition(|index| spared(**index));
        self.pieces = pieces;
        self.show(spared);
    }

    /// Takes the others out of the cache: how many bytes they had, and of how many chunks.
    ///
    /// # Errors
    /// What keeps that from being written down, when all are there still, or one from being punched.
    pub(in crate::host) fn take_away(mut self) -> Result<(u64, usize)> {
        if self.pieces.is_empty() {
            return Ok((0, 0));
        }
        self.of.forget_in_map()?;
        // Who found them readable has read them.
        drop(self.of.giving.write());
        // From now on they are away, whatever is left of them.
        let pieces = std::mem::take(&mut self.pieces);
        let mut bytes = 0;
        let punched = pieces.iter().try_for_each(|&index| -> io::Result<()> {
            bytes += self.of.punch(index)?;
            Ok(())
        });
        let mut state = self.of.lock();
        for index in &pieces {
            state.fetching.remove(index);
        }
        drop(state);
        self.of.changed.notify_all();
        punched.map_err(Error::io("punch", self.of.path()))?;
        Ok((bytes, pieces.len()))
    }

    /// They are not what they should be: from now on they are away, and what is in the file stays until something else is written
    /// there, for who was let pass before.
    ///
    /// # Errors
    /// What keeps that from being written down, when all can be read again.
    pub(in crate::host) fn give_up(mut self) -> Result<()> {
        self.of.forget_in_map()?;
        let pieces = std::mem::take(&mut self.pieces);
        let mut state = self.of.lock();
        for index in &pieces {
            state.fetching.remove(index);
        }
        state.given_up.extend(pieces);
        drop(state);
        self.of.changed.notify_all();
        Ok(())
    }

    fn show(&self, pieces: Vec<usize>) {
        let mut state = self.of.lock();
        for index in pieces {
            state.fetching.remove(&index);
            state.show(index);
        }
        drop(state);
        self.of.changed.notify_all();
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let pieces = std::mem::take(&mut self.pieces);
        self.show(pieces);
    }
}

impl Drop for Mounting<'_> {
    fn drop(&mut self) {
        self.0.lock().mounting -= 1;
    }
}
