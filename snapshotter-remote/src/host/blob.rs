//! One blob in the cache of this host: a sparse file, and which of its chunks are in it. What is in it was
//! verified before it was written, and is on the disk before the map of the disk says so.
//!
//! ```text
//!  ROOT/blobs/TABLE/table   which chunks it is; its digest is the directory's name
//!  ROOT/blobs/TABLE/data    sparse, as long as the blob; holes of it are zeros by the table, too
//!  ROOT/blobs/TABLE/map     a bit for each piece of the table: 1 is on the disk
//!
//!  absent --one fetches, others wait--> verified, written --> readable --fdatasync--> in the map
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
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use disk::{BLOCK_BYTES, Digest};
use snapshot_core::{Error, Result};

use super::{client::Patience, files};
use crate::{
    chunk::ChunkId,
    table::{PIECES_MAX, Piece, Table},
};

/// Length that a stored table may have.
pub(super) const TABLE_BYTES_MAX: usize = 4 + 36 * PIECES_MAX;

/// Where chunks come from, verified.
pub(super) trait Source: std::fmt::Debug + Sync {
    /// The contents of a chunk of that many blocks, tried for that long.
    fn chunk(&self, id: ChunkId, blocks: u32, patience: Patience) -> Result<Vec<u8>>;

    /// Nothing more is fetched: who waits for a chunk is told that it failed.
    fn close(&self);
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
    state: Mutex<State>,
    /// Held while the map is written, so that no older one takes its place.
    syncing: Mutex<()>,
    /// A chunk is there, or failed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Pieces that can be read; holes always can.
    readable: Vec<bool>,
    /// Chunks that are not.
    missing: usize,
    fetching: BTreeSet<usize>,
    /// Whether the map on the disk has less.
    unsynced: bool,
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
        let map = files::read(&directory.join("map"), PIECES_MAX)?.unwrap_or_default();
        // A map beside another file says nothing of this one.
        let map = if length == bytes { map } else { Vec::new() };
        if length != bytes {
            data.set_len(bytes).map_err(Error::io("extend", &path))?;
        }
        Ok(Self {
            name,
            state: Mutex::new(State::new(&table, &map)),
            starts: starts(&table),
            table,
            directory,
            data,
            writer: OnceLock::new(),
            may_have_more: length == bytes,
            syncing: Mutex::default(),
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

    /// Pieces of a range of bytes that cannot be read yet.
    pub(super) fn missing_in(&self, bytes: Range<u64>) -> Vec<usize> {
        let end_block = bytes.end.div_ceil(BLOCK_BYTES);
        let first_block = bytes.start / BLOCK_BYTES;
        let state = self.lock();
        // The last that begins at or before the first block.
        let first = self
            .starts
            .partition_point(|start| u64::from(*start) <= first_block);
        let pieces = first.saturating_sub(1)..state.readable.len();
        let pieces = pieces.take_while(|index| u64::from(self.starts[*index]) < end_block);
        pieces.filter(|index| !state.readable[*index]).collect()
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
        let next = AtomicUsize::new(0);
        let missing: Vec<usize> = {
            let state = self.lock();
            let all = state.readable.iter().enumerate();
            all.filter(|(_, is)| !**is)
                .map(|(index, _)| index)
                .collect()
        };
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
        // What came is kept, whatever did not.
        self.sync()?;
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
        let path = self.directory.join("data");
        let synced = self.data.sync_data().map_err(Error::io("sync", path));
        let placed = synced.and_then(|()| files::place(&self.directory.join("map"), &map));
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
            let at = u64::from(self.starts[index]) * BLOCK_BYTES;
            let written = self.writer.wait().write_all_at(&contents, at);
            written.map_err(Error::io("write", self.directory.join("data")))?;
        }
        let mut state = self.lock();
        state.readable[index] = true;
        state.missing -= 1;
        state.unsynced = true;
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
            readable,
            ..Self::default()
        }
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
    let directory = blobs.join(Digest(name).to_string());
    let Some(table) = stored_table(&directory, name)? else {
        return Ok(None);
    };
    let map = files::read(&directory.join("map"), PIECES_MAX)?.unwrap_or_default();
    let missing = State::new(&table, &map).missing;
    let chunks = table.chunks().count();
    Ok(Some((chunks, chunks - missing)))
}

/// The table in that directory; one that is damaged is none.
fn stored_table(directory: &Path, name: [u8; 32]) -> Result<Option<Table>> {
    let path = directory.join("table");
    let bytes = files::read(&path, TABLE_BYTES_MAX)?;
    Ok(bytes.and_then(|bytes| Table::open(&path.display().to_string(), &bytes, name).ok()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Chunks by what is in them, each of one byte again and again.
    #[derive(Debug, Default)]
    struct Chunks {
        asked: Mutex<Vec<ChunkId>>,
        fails: AtomicBool,
    }

    fn contents(value: u8, blocks: u32) -> Vec<u8> {
        vec![value; blocks as usize * 4096]
    }

    impl Source for Chunks {
        fn chunk(&self, id: ChunkId, blocks: u32, _patience: Patience) -> Result<Vec<u8>> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(Error::Unavailable("in this test".to_owned()));
            }
            self.asked.lock().unwrap().push(id);
            let all = (0..=u8::MAX).map(|value| contents(value, blocks));
            let found = all.into_iter().find(|bytes| ChunkId::of(bytes) == id);
            Ok(found.expect("one of them"))
        }

        fn close(&self) {
            self.fails.store(true, Ordering::Relaxed);
        }
    }

    impl Chunks {
        fn count(&self) -> usize {
            self.asked.lock().unwrap().len()
        }
    }

    fn table() -> Table {
        let chunk = |value, blocks| Piece::Chunk {
            id: ChunkId::of(&contents(value, blocks)),
            blocks,
        };
        let hole = Piece::Hole { blocks: 20 };
        Table::new(vec![chunk(1, 16), chunk(2, 20), hole, chunk(3, 1)]).unwrap()
    }

    fn open(at: &Path) -> Blob {
        Blob::open(at, table().digest(), || Ok(table())).unwrap()
    }

    fn byte_at(blob: &Blob, block: u64) -> u8 {
        let mut byte = [0];
        blob.data().read_exact_at(&mut byte, block * 4096).unwrap();
        byte[0]
    }

    fn missing(blob: &Blob) -> usize {
        blob.lock().missing
    }

    #[test]
    fn what_is_there_is_what_the_table_says_and_was_fetched_once() {
        let directory = tempfile::tempdir().unwrap();
        let blob = open(directory.path());
        let chunks = Chunks::default();
        blob.fill_piece(1, &chunks, Patience::Once).unwrap();
        blob.fill_piece(2, &chunks, Patience::Once).unwrap();
        assert_eq!((missing(&blob), chunks.count()), (2, 1));
        let bytes = [15, 16, 35, 40].map(|block| byte_at(&blob, block));
        assert_eq!(bytes, [0, 2, 2, 0]);
        blob.fill_all(4, &chunks).unwrap();
        blob.fill_all(4, &chunks).unwrap();
        assert_eq!((missing(&blob), chunks.count()), (0, 3));
        let bytes = [15, 16, 40, 56].map(|block| byte_at(&blob, block));
        assert_eq!(bytes, [1, 2, 0, 3]);
        let about = blob.data().metadata().unwrap();
        assert_eq!(about.len(), 57 * 4096);
        assert!(
            blob.allocated_bytes().unwrap() <= 38 * 4096,
            "a hole takes no room"
        );
    }

    #[test]
    fn pieces_of_a_range_are_those_that_it_touches_and_that_are_missing() {
        let directory = tempfile::tempdir().unwrap();
        let blob = open(directory.path());
        let check = |blocks: Range<u64>, expected: &[usize]| {
            let bytes = blocks.start * 4096..blocks.end * 4096;
            assert_eq!(blob.missing_in(bytes), expected, "{blocks:?}");
        };
        check(0..1, &[0]);
        check(15..16, &[0]);
        check(15..17, &[0, 1]);
        check(16..16, &[]);
        check(36..56, &[]);
        check(0..1_000_000, &[0, 1, 3]);
        check(56..57, &[3]);
        check(57..58, &[]);
        assert_eq!(blob.missing_in(56 * 4096 + 1..56 * 4096 + 2), [3]);
        blob.fill_piece(1, &Chunks::default(), Patience::Once)
            .unwrap();
        check(15..17, &[0]);
        assert_eq!(blob.first_missing(1..9), Some(3));
        assert_eq!(blob.first_missing(1..3), None);
        assert!(!blob.is_whole());
        assert_eq!(blob.piece_bytes(1), 20 * 4096);
    }

    #[test]
    fn what_was_synced_is_there_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = Chunks::default();
        let blob = open(directory.path());
        blob.fill_piece(0, &chunks, Patience::Once).unwrap();
        blob.sync().unwrap();
        blob.fill_piece(1, &chunks, Patience::Once).unwrap();
        drop(blob);
        let blob = open(directory.path());
        assert_eq!(missing(&blob), 2, "what was not synced counts not");
        blob.fill_all(4, &chunks).unwrap();
        assert_eq!(chunks.count(), 3, "and is found where it was written");
        drop(blob);
        // Something else than was written, as after a loss of power.
        let path = directory.path().join(Digest(table().digest()).to_string());
        std::fs::remove_file(path.join("map")).unwrap();
        let file = OpenOptions::new().write(true).open(path.join("data"));
        file.unwrap().write_all_at(&[9], 4096 * 20).unwrap();
        let blob = open(directory.path());
        blob.fill_all(4, &chunks).unwrap();
        assert_eq!((chunks.count(), byte_at(&blob, 20)), (4, 2));
        drop(blob);
        assert_eq!(missing(&open(directory.path())), 0);
        let name = table().digest();
        assert_eq!(look(directory.path(), name).unwrap(), Some((3, 3)));
        // Another file is not what the map was of.
        let data = directory.path().join(Digest(name).to_string()).join("data");
        std::fs::write(data, "").unwrap();
        assert_eq!(missing(&open(directory.path())), 3);
    }

    #[test]
    fn a_failure_is_told_and_what_came_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let blob = open(directory.path());
        let chunks = Chunks::default();
        blob.fill_piece(0, &chunks, Patience::Once).unwrap();
        chunks.fails.store(true, Ordering::Relaxed);
        let error = blob.fill_all(2, &chunks).unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        assert_eq!(missing(&blob), 2);
        chunks.fails.store(false, Ordering::Relaxed);
        blob.fill_all(2, &chunks).unwrap();
        assert_eq!(missing(&blob), 0);
    }

    #[test]
    fn many_who_want_the_same_fetch_it_once() {
        let directory = tempfile::tempdir().unwrap();
        let blob = open(directory.path());
        let chunks = Chunks::default();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| blob.fill_all(4, &chunks).unwrap());
            }
        });
        assert_eq!(chunks.count(), 3);
    }
}
