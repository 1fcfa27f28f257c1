//! What a store in a directory has beside its objects: room for what becomes one, what was left half, and directories that have to
//! be synced.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use disk::{Digest, FORMAT_VERSION};
use object_store::local::LocalFileSystem;

use super::{name::Name, traces};
use crate::{
    chunk::ChunkId,
    error::{Error, Result},
    signature::digest,
};

/// Where unfinished blobs lie, without names: what a crash leaves of them, the kernel takes away.
const SCRATCH: &str = "incoming";

/// Directories of objects.
const KINDS: [&str; 4] = ["chunks", "tables", "layers", "disks"];

/// The directory of a store.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// At that path, made if it is not there.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let failed = |source| Error::File {
            doing: "making the directory of a store",
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path.join(SCRATCH)).map_err(failed)?;
        make_directories(path).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it, each put with its contents and its name on the disk.
    pub(super) fn objects(&self) -> Result<LocalFileSystem> {
        let objects = LocalFileSystem::new_with_prefix(&self.path);
        let objects = objects.map_err(|source| Error::File {
            doing: "opening the directory of a store",
            path: self.path.clone(),
            source: source.into(),
        })?;
        Ok(objects.with_fsync(true))
    }

    /// A file without a name on the store's own file system.
    pub(super) fn scratch(&self) -> Result<File> {
        let directory = self.path.join(SCRATCH);
        tempfile::tempfile_in(&directory).map_err(|source| Error::File {
            doing: "making a file for a blob",
            path: directory,
            source,
        })
    }

    /// Waits until the names beside an object are on the disk.
    pub(super) fn sync(&self, name: Name) -> Result<()> {
        let path = self.path.join(name.directory());
        let synced = File::open(&path).and_then(|directory| directory.sync_all());
        synced.map_err(|source| Error::File {
            doing: "syncing",
            path,
            source,
        })
    }

    /// Refuses a store in which disks of another format are.
    pub(super) fn only_our_format(&self) -> Result<()> {
        let disks = self.path.join("disks");
        for entry in entries(&disks)? {
            let is_ours = entry.file_name().to_str() == Some(FORMAT_VERSION.to_string().as_str());
            if !is_ours && entries(&entry.path())?.next().is_some() {
                let object = entry.path().display().to_string();
                return Err(Error::OtherFormat { object });
            }
        }
        Ok(())
    }

    /// Files that were to become objects, with their lengths: an object's name, `#`, a number. They
    /// are waste while nobody adds.
    pub(super) fn leftovers(&self) -> Result<Vec<(PathBuf, u64)>> {
        let mut found = Vec::new();
        let mut pending: Vec<PathBuf> = KINDS.map(|kind| self.path.join(kind)).into();
        while let Some(directory) = pending.pop() {
            for entry in entries(&directory)? {
                let unread = |source| unreadable(&entry.path(), source);
                let metadata = entry.metadata().map_err(unread)?;
                if metadata.is_dir() {
                    pending.push(entry.path());
                } else if metadata.is_file() && is_leftover(&entry.file_name()) {
                    let path = entry.path();
                    let below = path.strip_prefix(&self.path).unwrap_or(&path);
                    found.push((below.to_owned(), metadata.len()));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// One of these.
    pub(super) fn remove_leftover(&self, below: &Path) -> Result<()> {
        let path = self.path.join(below);
        fs::remove_file(&path).map_err(|source| Error::File {
            doing: "removing",
            path,
            source,
        })
    }
}

/// Directories of objects are there before the first object, and on the disk: so what is put into them
/// needs no more than they.
fn make_directories(store: &Path) -> io::Result<()> {
    let chunks = (0..=u8::MAX).map(|first| Name::Chunk(ChunkId([first; 32])));
    let zeros = [0; 32];
    let others = [
        Name::Table(zeros),
        Name::Layer(Digest(zeros)),
        Name::Disk(Digest(zeros)),
    ];
    for name in chunks.chain(others) {
        fs::create_dir_all(store.join(name.directory()))?;
    }
    // For the server, which may write nowhere else.
    fs::create_dir_all(traces::directory(store))?;
    for above in KINDS.iter().copied().chain([""]) {
        File::open(store.join(above))?.sync_all()?;
    }
    Ok(())
}

/// What is in a directory; nothing if that is not there.
pub(super) fn entries(path: &Path) -> Result<impl Iterator<Item = fs::DirEntry>> {
    let read = match fs::read_dir(path) {
        Ok(read) => read.collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    Ok(read.map_err(|source| unreadable(path, source))?.into_iter())
}

/// As `object_store` names what it has not linked to its name yet.
fn is_leftover(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.split_once('#'));
    parts.is_some_and(|(name, number)| {
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number && digest(name).is_some()
    })
}

/// What is no error of an object, but of the way to it.
pub(crate) fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::File {
        doing: "reading",
        path: path.to_owned(),
        source,
    }
}
