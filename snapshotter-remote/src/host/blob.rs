//! One blob in the cache of this host: a sparse file, and which of its chunks are in it. What is in it was
//! verified before it was written, and is on the disk before the map of the disk says so.
//!
//! ```text
//!  ROOT/blobs/TABLE/table   which chunks it is; its digest is the directory's name
//!  ROOT/blobs/TABLE/data    sparse, as long as the blob; holes of it are zeros by the table, too
//!  ROOT/blobs/TABLE/map     a bit for each piece of the table: 1 is on the disk
//!  ROOT/blobs/TABLE/opened  see opens.rs
//!
//!  absent --one fetches, others wait--> verified, written --> readable --fdatasync--> in the map
//!     ^                                                          |
//!     +---------- punched <-- out of the map <-- hidden <--------+   blob/eviction.rs
//! ```
//!
//! What was written and is not in the map when a daemon is killed is found again: it is what its digest says, or not there.
//!
//! A file that is watched may be written only by a descriptor that is older than that, or came with an event: what any other
//! writes is an event itself.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use disk::{BLOCK_BYTES, Digest};
use snapshot_core::{Error, Result};

pub(super) use eviction::Hidden;

use super::{client::Patience, files, opens::Opens};
use crate::{
    chunk::ChunkId,
    table::{self, PIECES_MAX, Piece, Table},
};

mod eviction;
mod right;

/// Chunks that each thread fetches, until it is asked whether they are wanted still.
const FILLED_BETWEEN: usize = 8;

/// Counts uses of chunks, so that it is known which was used last.
static USES: AtomicU64 = AtomicU64::new(1);

/// Where chunks come from, verified, and who sees to it that there is room for them.
pub(super) trait Source: std::fmt::Debug + Sync {
    /// The contents of a chunk of that many blocks, tried for that long.
    fn chunk(&self, id: ChunkId, blocks: u32, patience: Patience) -> Result<Vec<u8>>;

    /// The disk had no room for so many bytes: whether there may be some now.
    fn make_room(&self, bytes: u64) -> bool;

    /// So many bytes have been written to the cache.
    fn wrote(&self, bytes: u64);

    /// Whether there is room for what nobody has asked for.
    fn has_room(&self) -> bool;

    /// Nothing more is fetched: who waits for a chunk is told that it failed.
    fn close(&self);

    /// What hosts read first of a disk, as a store gives it, which is asked once; none where nobody tells.
    fn trace(&self, _disk: Digest) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Tells a store what was read first of a disk, where there is somebody to tell.
    fn put_trace(&self, _disk: Digest, _trace: Vec<u8>) -> Result<()> {
        Ok(())
    }
}

/// A blob.
#[derive(Debug)]
pub(super) struct Blob {
    name: [u8; 32],
    table: Table,
    /// The first block of each piece, and the end.
    starts: Vec<u32>,
    directory: PathBuf,
    data: File,
    /// What chunks are written by; of a blob that is watched already it has to come with an event.
    writer: OnceLock<File>,
    /// Whether the file was there before, so that more may be in it than the map says.
    may_have_more: bool,
    /// Whether that was looked for.
    has_found: AtomicBool,
    state: Mutex<State>,
    /// Who has the file open.
    opens: Mutex<Opens>,
    /// Held while the map is written, so that no older one takes its place.
    syncing: Mutex<()>,
    /// Held by who gives bytes to a reader, and shortly by who takes chunks away after they were hidden.
    giving: RwLock<()>,
    /// A chunk is there, or failed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Pieces that can be read; holes always can.
    readable: Vec<bool>,
    /// Chunks that are not.
    missing: usize,
    /// Those that somebody fetches or takes away.
    fetching: BTreeSet<usize>,
    /// Those of the missing that could be read before: who was let pass may still read what is in the file.
    given_up: BTreeSet<usize>,
    /// Whether the map on the disk has less.
    unsynced: bool,
    /// When each piece was used last, by [`USES`].
    used: Vec<u64>,
    /// How many are about to mount it.
    mounting: usize,
    /// How often that has begun.
    mountings: u64,
}

impl Blob {
    /// The blob of that table in the directory of all, which nobody watches; made from `table` if it is not there.
    pub(super) fn open(
        blobs: &Path,
        name: [u8; 32],
        table: impl FnOnce() -> Result<Table>,
    ) -> Result<Self> {
        let this = Self::open_watched(blobs, name, table)?;
        this.write_by_own()?;
        Ok(this)
    }

    /// The same, and perhaps it is watched: nothing is written to it before [`Blob::write_by`] says by what.
    pub(super) fn open_watched(
        blobs: &Path,
        name: [u8; 32],
        table: impl FnOnce() -> Result<Table>,
    ) -> Result<Self> {
        let directory = blobs.join(Digest(name).to_string());
        files::make_directory(&directory)?;
        let table = stored_table(&directory, name)?.map_or_else(
            || {
                let table = table()?;
                let mut bytes = Vec::new();
                table.encode(&mut bytes);
                files::place(&directory.join("table"), &bytes)?;
                Ok(table)
            },
            Ok,
        )?;
        let path = directory.join("data");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let data = options.open(&path).map_err(Error::io("open", &path))?;
        let bytes = u64::from(table.blocks()) * BLOCK_BYTES;
        let length = data.metadata().map_err(Error::io("look at", &path))?.len();
        // A file that was just made has been opened by nobody else.
        let opens = Opens::read(&directory, length == 0 && bytes > 0)?;
        let map = files::read(&directory.join("map"), PIECES_MAX)?.unwrap_or_default();
        // A map beside another file says nothing of this one.
        let map = if length == bytes { map } else { Vec::new() };
        if length != bytes {
            data.set_len(bytes).map_err(Error::io("extend", &path))?;
        }
        Ok(Self {
            name,
            state: Mutex::new(State::new(&table, &map)),
            opens: Mutex::new(opens),
            starts: starts(&table),
            table,
            directory,
            data,
            writer: OnceLock::new(),
            may_have_more: length == bytes,
            has_found: AtomicBool::new(false),
            syncing: Mutex::default(),
            giving: RwLock::default(),
            changed: Condvar::new(),
        })
    }

    /// Chunks are written by this descriptor, unless there was one before.
    pub(super) fn write_by(&self, writer: File) {
        // The first is as good.
        drop(self.writer.set(writer));
    }

    /// Nobody watches it, so chunks are written by the descriptor that it was opened by.
    pub(super) fn write_by_own(&self) -> Result<()> {
        let own = self.data.try_clone();
        self.write_by(own.map_err(Error::io("open again", self.directory.join("data")))?);
        Ok(())
    }

    /// Whether it is known what chunks are written by.
    pub(super) fn has_writer(&self) -> bool {
        self.writer.get().is_some()
    }

    /// What it is known by: the digest of its table.
    pub(super) fn name(&self) -> [u8; 32] {
        self.name
    }

    /// The file that kernels read.
    pub(super) fn data(&self) -> &File {
        &self.data
    }

    /// Where that is.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Length in blocks.
    pub(super) fn blocks(&self) -> u32 {
        self.table.blocks()
    }

    /// Bytes that it takes of the disk now.
    pub(super) fn allocated_bytes(&self) -> Result<u64> {
        let about = self.data.metadata();
        let about = about.map_err(Error::io("look at", self.directory.join("data")))?;
        Ok(about.blocks() * 512)
    }

    /// Whether all of it can be read.
    pub(super) fn is_whole(&self) -> bool {
        self.lock().missing == 0
    }

    /// Pieces of a range of bytes, which somebody reads, that cannot be read yet.
    pub(super) fn missing_in(&self, bytes: Range<u64>) -> Vec<usize> {
        let pieces = self.pieces_in(&bytes);
        let mut state = self.lock();
        let now = USES.fetch_add(1, Ordering::Relaxed);
        let state = &mut *state;
        let pieces = pieces.inspect(|index| state.used[*index] = now);
        pieces.filter(|index| !state.readable[*index]).collect()
    }

    /// Reads bytes from there on: whether all of them can be read, so that they are what somebody may be given.
    pub(super) fn read_here(&self, at: u64, bytes: &mut [u8]) -> Result<bool> {
        let _stays = self.giving.read().unwrap_or_else(PoisonError::into_inner);
        let range = at..at.saturating_add(bytes.len() as u64);
        if !self.missing_in(range).is_empty() {
            return Ok(false);
        }
        let file = self.writer.get().unwrap_or(&self.data);
        let read = file.read_exact_at(bytes, at);
        read.map_err(Error::io("read", self.path()))?;
        Ok(true)
    }

    /// Pieces of a range of bytes.
    pub(super) fn pieces_in(&self, bytes: &Range<u64>) -> Range<usize> {
        let end_block = bytes.end.div_ceil(BLOCK_BYTES);
        let first_block = bytes.start / BLOCK_BYTES;
        let count = self.pieces();
        let starts = &self.starts[..count];
        // The last that begins at or before the first block.
        let first = self
            .starts
            .partition_point(|start| u64::from(*start) <= first_block);
        let end = starts.partition_point(|start| u64::from(*start) < end_block);
        first.saturating_sub(1)..end
    }

    /// How many pieces its table has.
    pub(super) fn pieces(&self) -> usize {
        self.table.pieces().len()
    }

    /// The first of these pieces that cannot be read yet.
    pub(super) fn first_missing(&self, pieces: Range<usize>) -> Option<usize> {
        let state = self.lock();
        let end = pieces.end.min(state.readable.len());
        (pieces.start..end).find(|index| !state.readable[*index])
    }

    /// Length of a piece in bytes.
    pub(super) fn piece_bytes(&self, index: usize) -> u64 {
        u64::from(self.table.pieces()[index].blocks()) * BLOCK_BYTES
    }

    /// Makes everything readable, by that many threads, and syncs it.
    pub(super) fn fill_all(&self, threads: usize, source: &dyn Source) -> Result<()> {
        let filled = self.fill_some(&self.all_missing(), threads, source);
        // What came is kept, whatever did not.
        self.sync()?;
        filled
    }

    /// The same, as long as `goes_on` says so, which is asked now and then.
    pub(super) fn fill_all_while(
        &self,
        threads: usize,
        source: &dyn Source,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<()> {
        let missing = self.all_missing();
        let mut filled = Ok(());
        for some in missing.chunks(threads.max(1) * FILLED_BETWEEN) {
            filled = self.fill_some(some, threads, source);
            if filled.is_err() || !goes_on() {
                break;
            }
        }
        // What came is kept, whatever did not.
        self.sync()?;
        filled
    }

    fn fill_some(&self, missing: &[usize], threads: usize, source: &dyn Source) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(&index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.fill_piece(index, source, Patience::Deadline) {
                    // The others need not begin another.
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        let filled: Result<Vec<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.min(missing.len()))
                .map(|_| scope.spawn(work))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        filled.map(drop)
    }

    /// Writes down what is readable, as far as it is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        let _mine = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let map = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.unsynced) {
                return Ok(());
            }
            packed(&state.readable)
        };
        let path = self.path();
        let synced = self.data.sync_data().map_err(Error::io("sync", path));
        let placed = synced.and_then(|()| self.place_map(&map));
        if placed.is_err() {
            self.lock().unsynced = true;
        }
        placed
    }

    /// Makes a piece readable. One fetches, others who want the same wait.
    pub(super) fn fill_piece(
        &self,
        index: usize,
        source: &dyn Source,
        patience: Patience,
    ) -> Result<()> {
        let Piece::Chunk { id, blocks } = self.table.pieces()[index] else {
            return Ok(());
        };
        let mut state = self.lock();
        loop {
            if state.readable[index] {
                return Ok(());
            }
            if state.fetching.insert(index) {
                break;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let _fetching = Fetching { of: self, index };
        if !self.has_already(index, id) {
            let contents = source.chunk(id, blocks, patience)?;
            self.write(index, &contents, source)?;
        }
        let mut state = self.lock();
        state.show(index);
        state.used[index] = USES.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Writes a chunk; when the disk is full, once more after others have made room.
    fn write(&self, index: usize, contents: &[u8], source: &dyn Source) -> Result<()> {
        let at = u64::from(self.starts[index]) * BLOCK_BYTES;
        let bytes = contents.len() as u64;
        let write = || self.writer.wait().write_all_at(contents, at);
        let written = match write() {
            Err(error) if files::is_full(&error) && source.make_room(bytes) => write(),
            written => written,
        };
        if written.is_err() {
            // Part of it may be there, and takes room for nothing.
            self.clear(index);
        }
        written.map_err(Error::io("write", self.directory.join("data")))?;
        source.wrote(bytes);
        Ok(())
    }

    /// Whether an earlier daemon has written a chunk, and was killed before that was written down.
    fn has_already(&self, index: usize, id: ChunkId) -> bool {
        if !self.may_have_more {
            return false;
        }
        let bytes = usize::try_from(self.piece_bytes(index)).expect("a chunk is 1 MiB at most");
        let mut contents = vec![0; bytes];
        let at = u64::from(self.starts[index]) * BLOCK_BYTES;
        let read = self.writer.wait().read_exact_at(&mut contents, at);
        read.is_ok() && ChunkId::of(&contents) == id
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chunk that is being fetched; whoever waits for it looks again when this is dropped.
struct Fetching<'a> {
    of: &'a Blob,
    index: usize,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.of.lock().fetching.remove(&self.index);
        self.of.changed.notify_all();
    }
}

impl State {
    fn new(table: &Table, map: &[u8]) -> Self {
        let pieces = table.pieces();
        let is_whole = map.len() == pieces.len().div_ceil(8);
        let has = |index: usize| is_whole && map[index / 8] & (1 << (index % 8)) != 0;
        let is_hole = |piece: &Piece| matches!(piece, Piece::Hole { .. });
        let pieces = pieces.iter().enumerate();
        let readable: Vec<bool> = pieces
            .map(|(index, piece)| is_hole(piece) || has(index))
            .collect();
        Self {
            missing: readable.iter().filter(|is| !**is).count(),
            used: vec![0; readable.len()],
            readable,
            ..Self::default()
        }
    }

    /// What was missing can be read.
    fn show(&mut self, index: usize) {
        self.readable[index] = true;
        self.missing -= 1;
        self.unsynced = true;
        self.given_up.remove(&index);
    }
}

fn packed(readable: &[bool]) -> Vec<u8> {
    let mut map = vec![0; readable.len().div_ceil(8)];
    for (index, _) in readable.iter().enumerate().filter(|(_, is)| **is) {
        map[index / 8] |= 1 << (index % 8);
    }
    map
}

fn starts(table: &Table) -> Vec<u32> {
    let mut next = 0;
    let pieces = table.pieces().iter().map(|piece| {
        let start = next;
        next += piece.blocks();
        start
    });
    let mut starts: Vec<u32> = pieces.collect();
    starts.push(table.blocks());
    starts
}

/// How many chunks the blob in that directory has, and how many of them are in the map of the disk.
pub(super) fn look(blobs: &Path, name: [u8; 32]) -> Result<Option<(usize, usize)>> {
    let kept = kept(blobs, name)?;
    Ok(kept.map(|(table, state)| {
        let chunks = table.chunks().count();
        (chunks, chunks - state.missing)
    }))
}

/// Which pieces of the blob in that directory are in the map of the disk, or are holes.
pub(super) fn readable(blobs: &Path, name: [u8; 32]) -> Result<Option<Vec<bool>>> {
    Ok(kept(blobs, name)?.map(|(_, state)| state.readable))
}

/// The table in that directory, and what is there of it by the map of the disk.
fn kept(blobs: &Path, name: [u8; 32]) -> Result<Option<(Table, State)>> {
    let directory = blobs.join(Digest(name).to_string());
    let Some(table) = stored_table(&directory, name)? else {
        return Ok(None);
    };
    let map = files::read(&directory.join("map"), PIECES_MAX)?.unwrap_or_default();
    let state = State::new(&table, &map);
    Ok(Some((table, state)))
}

/// The table in that directory; one that is damaged is none.
fn stored_table(directory: &Path, name: [u8; 32]) -> Result<Option<Table>> {
    let path = directory.join("table");
    let bytes = files::read(&path, table::BYTES_MAX)?;
    Ok(bytes.and_then(|bytes| Table::open(&path.display().to_string(), &bytes, name).ok()))
}

#[cfg(test)]
mod tests;
