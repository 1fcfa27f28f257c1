//! The store's file on the disk: made, opened, and given room of its own, so that it can be written
//! when the disk is full, for only then can what fills it be removed. It knows nothing of what is
//! in it.
//!
//! Room is kept in two ways. All of the file and some of what follows its end is allocated; and on
//! btrfs, which writes anew beside the old what is written over, it is written in place
//! (FS_NOCOW_FL). redb does the copying that a crash needs, and has sums of all pages.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Bound,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::fcntl::{FallocateFlags, fallocate};
use redb::{
    BackendError, StorageBackend,
    backends::{FileBackend, InMemoryBackend},
};
use sys::filesystem::{self, FilesystemKind};

use crate::{Error, Result};

/// Allocated beyond the end of the file.
const ROOM_BYTES: u64 = 4 << 20;

/// The file, with room.
#[derive(Debug)]
pub(super) struct StoreFile {
    backend: FileBackend,
    file: File,
}

impl StoreFile {
    /// Makes an empty file where there is none.
    pub(super) fn make(path: &Path) -> Result<Self> {
        let made = make_empty(path).map_err(Error::io("make", path))?;
        Self::new(path, made)
    }

    pub(super) fn open(path: &Path) -> Result<Self> {
        let open = || OpenOptions::new().read(true).write(true).open(path);
        let failed = || Error::io("open", path);
        let mut file = open().map_err(failed())?;
        match is_copied_on_write(&file) {
            Ok(false) => {}
            // One that an earlier version made.
            Ok(true) => match replace(path) {
                Ok(()) => file = open().map_err(failed())?,
                Err(error) => tracing::debug!(%error, "the store has no room of its own yet"),
            },
            Err(error) => tracing::debug!(%error, "the store's flags could not be read"),
        }
        Self::new(path, file)
    }

    fn new(path: &Path, file: File) -> Result<Self> {
        let failed = || Error::io("open", path);
        let again = file.try_clone().map_err(failed())?;
        let backend =
            FileBackend::new(again).map_err(|error| super::storage::damaged(path, error))?;
        let this = Self { backend, file };
        this.keep_room(file_len(&this.file).map_err(failed())?);
        Ok(this)
    }

    /// It is no error when there is none: who opens a store on a full disk wants to free something.
    fn keep_room(&self, len: u64) {
        let Ok(len) = i64::try_from(len + ROOM_BYTES) else {
            return;
        };
        let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Err(errno) = fallocate(&self.file, flags, 0, len) {
            tracing::debug!(%errno, "no room is kept for the store");
        }
    }
}

/// What the file has now, to be read while it cannot be written: what redb puts right in it is
/// put right in memory.
pub(super) fn copy(path: &Path) -> Result<InMemoryBackend> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    let copy = InMemoryBackend::new();
    let filled = copy
        .set_len(text.len() as u64)
        .and_then(|()| copy.write(0, &text));
    filled.map_err(|error| Error::io("read", path)(io::Error::other(error.to_string())))?;
    Ok(copy)
}

fn make_empty(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if is_on_btrfs(&file)?
        && let Err(error) = filesystem::write_in_place(&file)
    {
        tracing::debug!(%error, "the store will have no room of its own");
    }
    Ok(file)
}

fn is_on_btrfs(file: &File) -> io::Result<bool> {
    FilesystemKind::of(file).map(|kind| kind == FilesystemKind::Btrfs)
}

fn is_copied_on_write(file: &File) -> io::Result<bool> {
    Ok(is_on_btrfs(file)? && !filesystem::is_written_in_place(file)?)
}

/// Only an empty file can be made one that is written in place.
fn replace(path: &Path) -> io::Result<()> {
    let unfinished = path.with_extension("redb.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let replaced = make_empty(&unfinished).and_then(|mut new| {
        new.write_all(&fs::read(path)?)?;
        new.sync_all()?;
        fs::rename(&unfinished, path)
    });
    if replaced.is_err() {
        // It would only take room.
        let _gone = fs::remove_file(&unfinished);
    }
    replaced
}

fn file_len(file: &File) -> io::Result<u64> {
    file.metadata().map(|about| about.len())
}

impl StorageBackend for StoreFile {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    /// Most file systems give back what is allocated beyond the end.
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.backend.set_len(len)?;
        self.keep_room(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }
}
