//! Files that are there whole and synced, or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use snapshot_core::{Error, Result};

/// Puts a file under its name when it is on the disk.
pub(super) fn place(path: &Path, bytes: &[u8]) -> Result<()> {
    place_with(path, |mut file| {
        file.write_all(bytes)
            .map_err(Error::io("write", path.to_owned()))
    })
}

/// Puts a file under its name whole, and waits for no disk.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().expect("it lies in a directory of ours");
    let file = tempfile::NamedTempFile::new_in(directory);
    let mut file = file.map_err(Error::io("make a file in", directory))?;
    let written = file.write_all(bytes);
    written.map_err(Error::io("write", path))?;
    let placed = file.persist(path).map_err(|error| error.error);
    placed.map_err(Error::io("rename to", path)).map(drop)
}

/// The same, for contents that are written bit by bit.
pub(super) fn place_with(path: &Path, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let directory = path.parent().expect("it lies in a directory of ours");
    let file = tempfile::NamedTempFile::new_in(directory);
    let file = file.map_err(Error::io("make a file in", directory))?;
    write(file.as_file())?;
    let synced = file.as_file().sync_all();
    synced.map_err(Error::io("sync", path))?;
    let placed = file.persist(path).map_err(|error| error.error);
    placed.map_err(Error::io("rename to", path))?;
    sync(directory)
}

/// Waits until the names in a directory are on the disk.
pub(super) fn sync(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(Error::io("sync", directory))
}

/// Whether it was for want of room.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};

    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// A directory of ours, if there is none yet.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(Error::io("make", path))
}

/// A file's bytes; none if there is no such file, or it is longer than that.
pub(super) fn read(path: &Path, bytes_max: usize) -> Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("look at", path)(error)),
        Ok(about) if about.len() > bytes_max as u64 => return Ok(None),
        Ok(_) => {}
    }
    fs::read(path).map(Some).map_err(Error::io("read", path))
}

/// Takes a directory of ours away, if it is there.
pub(super) fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("delete", path)(error))
        }
        _ => Ok(()),
    }
}
