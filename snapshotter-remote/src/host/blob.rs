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

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use disk::{BLOCK_BYTES, Digest};
use snapshot_core::{Error, Result};

use super::files;
use crate::{
    chunk::ChunkId,
    table::{PIECES_MAX, Piece, Table},
};

/// Length that a stored table may have.
pub(super) const TABLE_BYTES_MAX: usize = 4 + 36 * PIECES_MAX;

/// Where chunks come from, verified.
pub(super) trait Source: Sync {
    /// The contents of a chunk of that many blocks.
    fn chunk(&self, id: ChunkId, blocks: u32) -> Result<Vec<u8>>;
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
    state: Mutex<State>,
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
    /// The blob of that table in the directory of all; made from `table` if it is not there.
    pub(super) fn open(
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
            changed: Condvar::new(),
        })
    }

    /// What it is known by: the digest of its table.
    pub(super) fn name(&self) -> [u8; 32] {
        self.name
    }

    /// The file that kernels read.
    pub(super) fn data(&self) -> &File {
        &self.data
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
                if let Err(error) = self.fill_piece(index, source) {
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

    /// One fetches, others who want the same wait.
    fn fill_piece(&self, index: usize, source: &dyn Source) -> Result<()> {
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
        let contents = source.chunk(id, blocks)?;
        let at = u64::from(self.starts[index]) * BLOCK_BYTES;
        let written = self.data.write_all_at(&contents, at);
        written.map_err(Error::io("write", self.directory.join("data")))?;
        let mut state = self.lock();
        state.readable[index] = true;
        state.missing -= 1;
        state.unsynced = true;
        Ok(())
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
    #[derive(Default)]
    struct Chunks {
        asked: Mutex<Vec<ChunkId>>,
        fails: AtomicBool,
    }

    fn contents(value: u8, blocks: u32) -> Vec<u8> {
        vec![value; blocks as usize * 4096]
    }

    impl Source for Chunks {
        fn chunk(&self, id: ChunkId, blocks: u32) -> Result<Vec<u8>> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(Error::Unavailable("in this test".to_owned()));
            }
            self.asked.lock().unwrap().push(id);
            let all = (0..=u8::MAX).map(|value| contents(value, blocks));
            let found = all.into_iter().find(|bytes| ChunkId::of(bytes) == id);
            Ok(found.expect("one of them"))
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
        blob.fill_piece(1, &chunks).unwrap();
        blob.fill_piece(2, &chunks).unwrap();
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
    fn what_was_synced_is_there_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = Chunks::default();
        let blob = open(directory.path());
        blob.fill_piece(0, &chunks).unwrap();
        blob.sync().unwrap();
        blob.fill_piece(1, &chunks).unwrap();
        drop(blob);
        let blob = open(directory.path());
        assert_eq!(missing(&blob), 2, "what was not synced counts not");
        blob.fill_all(4, &chunks).unwrap();
        assert_eq!(chunks.count(), 4);
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
        blob.fill_piece(0, &chunks).unwrap();
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
