//! Objects by name: each is put once, whole and synced, or is not there. The only place that knows the
//! layout and the crate `object_store`.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

use disk::{Digest, FORMAT_VERSION};
use object_store::{
    GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    local::LocalFileSystem, path::Path as ObjectPath,
};
use tokio::runtime::{Builder, Runtime};

use super::traces;
use crate::{
    chunk::ChunkId,
    error::{Error, Result},
    signature::digest,
};

/// Where unfinished blobs lie, without names: what a crash leaves of them, the kernel takes away.
const SCRATCH: &str = "incoming";

/// Directories of objects.
const KINDS: [&str; 4] = ["chunks", "tables", "layers", "disks"];

/// The name of an object. It never means anything else: what depends on the format of disks has its
/// version in the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// Contents, by their BLAKE3.
    Chunk(ChunkId),
    /// The table of a blob, by its BLAKE3.
    Table([u8; 32]),
    /// A stored layer, by diffID.
    Layer(Digest),
    /// A signed manifest, by chainID.
    Disk(Digest),
}

/// A text that is no object's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no object has such a name")]
pub struct NoName;

/// Objects in a directory.
#[derive(Debug)]
pub struct Objects {
    objects: LocalFileSystem,
    /// Carries what is asynchronous for callers that are not.
    runtime: Runtime,
    directory: PathBuf,
}

impl Objects {
    /// In that directory, made if it is not there.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        let failed = |source| Error::File {
            doing: "making the directory of a store",
            path: directory.to_owned(),
            source,
        };
        fs::create_dir_all(directory.join(SCRATCH)).map_err(failed)?;
        make_directories(directory).map_err(failed)?;
        let objects = LocalFileSystem::new_with_prefix(directory);
        let objects = objects.map_err(|source| failed(source.into()))?;
        Ok(Self {
            objects: objects.with_fsync(true),
            runtime: Builder::new_current_thread().build().map_err(failed)?,
            directory: directory.to_owned(),
        })
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file without a name on the store's own file system.
    pub(crate) fn scratch(&self) -> Result<File> {
        let directory = self.directory.join(SCRATCH);
        tempfile::tempfile_in(&directory).map_err(|source| Error::File {
            doing: "making a file for a blob",
            path: directory,
            source,
        })
    }

    /// An object's bytes.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Damaged`] for more than `bytes_max`, what the store answers.
    pub fn get(&self, name: Name, bytes_max: usize) -> Result<Vec<u8>> {
        let path = name.path();
        let read = async {
            let answer = self.objects.get_opts(&path, GetOptions::default()).await?;
            if answer.meta.size > u64::try_from(bytes_max).unwrap_or(u64::MAX) {
                return Ok(None);
            }
            answer.bytes().await.map(Some)
        };
        match self.runtime.block_on(read) {
            Ok(Some(bytes)) => Ok(bytes.into()),
            Ok(None) => Err(Error::damaged(
                name.to_string(),
                "it is longer than it may be",
            )),
            Err(object_store::Error::NotFound { .. }) => Err(Error::Absent {
                object: name.to_string(),
            }),
            Err(source) => Err(failed("reading", name, source)),
        }
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// What the store answers.
    pub fn has(&self, name: Name) -> Result<bool> {
        let path = name.path();
        match self.runtime.block_on(self.objects.head(&path)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(failed("looking for", name, source)),
        }
    }

    /// Puts an object, if it is not there: what has its name is the same.
    ///
    /// # Errors
    /// What the store answers.
    pub(crate) fn put(&self, name: Name, bytes: Vec<u8>) -> Result<()> {
        let path = name.path();
        let options = PutOptions::from(PutMode::Create);
        let put = self
            .objects
            .put_opts(&path, PutPayload::from(bytes), options);
        match self.runtime.block_on(put) {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => self.sync_directory_of(name),
            Err(source) => Err(failed("writing", name, source)),
        }
    }

    /// Its length.
    pub(super) fn bytes(&self, name: Name) -> Result<u64> {
        let path = name.path();
        let found = self.runtime.block_on(self.objects.head(&path));
        let found = found.map_err(|source| failed("looking for", name, source))?;
        Ok(found.size)
    }

    /// Waits until the names in an object's directory are on the disk, whoever made or removed them. What
    /// has a name has its contents on the disk, but another who puts it may not have come further; so
    /// this comes between finding an object and putting one that leads to it.
    pub(super) fn sync_directory_of(&self, name: Name) -> Result<()> {
        let path = self.directory.join(name.directory());
        let synced = File::open(&path).and_then(|directory| directory.sync_all());
        synced.map_err(|source| Error::File {
            doing: "syncing",
            path,
            source,
        })
    }

    /// Refuses a store in which disks of another format are.
    pub(super) fn only_our_format(&self) -> Result<()> {
        let disks = self.directory.join("disks");
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
        let mut pending: Vec<PathBuf> = KINDS.map(|kind| self.directory.join(kind)).into();
        while let Some(directory) = pending.pop() {
            for entry in entries(&directory)? {
                let unread = |source| unreadable(&entry.path(), source);
                let metadata = entry.metadata().map_err(unread)?;
                if metadata.is_dir() {
                    pending.push(entry.path());
                } else if metadata.is_file() && is_leftover(&entry.file_name()) {
                    let path = entry.path();
                    let below = path.strip_prefix(&self.directory).unwrap_or(&path);
                    found.push((below.to_owned(), metadata.len()));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// One of these.
    pub(super) fn remove_leftover(&self, below: &Path) -> Result<()> {
        let path = self.directory.join(below);
        fs::remove_file(&path).map_err(|source| Error::File {
            doing: "removing",
            path,
            source,
        })
    }

    /// Takes an object away.
    ///
    /// # Errors
    /// What the store answers.
    pub(crate) fn remove(&self, name: Name) -> Result<()> {
        let path = name.path();
        let removed = self.runtime.block_on(self.objects.delete(&path));
        removed.map_err(|source| failed("removing", name, source))
    }

    /// All disks, by chainID.
    ///
    /// # Errors
    /// What the store answers.
    pub fn disks(&self) -> Result<Vec<Digest>> {
        self.names(&format!("disks/{FORMAT_VERSION}"))
    }

    /// All stored layers, by diffID.
    pub(crate) fn layers(&self) -> Result<Vec<Digest>> {
        self.names(&format!("layers/{FORMAT_VERSION}"))
    }

    /// All tables of blobs.
    pub(crate) fn tables(&self) -> Result<Vec<[u8; 32]>> {
        let names = self.names("tables")?;
        Ok(names.into_iter().map(|name| name.0).collect())
    }

    /// All chunks whose names begin with that byte.
    pub(crate) fn chunks(&self, first: u8) -> Result<Vec<ChunkId>> {
        let names = self.names(&format!("chunks/{first:02x}"))?;
        Ok(names.into_iter().map(|name| ChunkId(name.0)).collect())
    }

    /// What in that directory is the name of an object; anything else is not ours.
    fn names(&self, directory: &str) -> Result<Vec<Digest>> {
        let prefix = ObjectPath::from(directory);
        let listed = self
            .runtime
            .block_on(self.objects.list_with_delimiter(Some(&prefix)));
        let listed = listed.map_err(|source| Error::Objects {
            doing: "listing",
            object: directory.to_owned(),
            source: Box::new(source),
        })?;
        let names = listed.objects.iter();
        let names = names.filter_map(|object| digest(object.location.filename()?));
        let mut names: Vec<Digest> = names.collect();
        names.sort_unstable();
        Ok(names)
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

impl Name {
    /// Where it lies with others.
    pub(super) fn directory(&self) -> String {
        let mut path = self.to_string();
        path.truncate(path.rfind('/').unwrap_or_default());
        path
    }

    fn path(&self) -> ObjectPath {
        ObjectPath::from(match self {
            Self::Chunk(id) => format!("chunks/{:02x}/{id}", id.0[0]),
            Self::Table(digest) => format!("tables/{}", Digest(*digest)),
            Self::Layer(diff_id) => format!("layers/{FORMAT_VERSION}/{diff_id}"),
            Self::Disk(chain_id) => format!("disks/{FORMAT_VERSION}/{chain_id}"),
        })
    }
}

impl FromStr for Name {
    type Err = NoName;

    /// Of what [`Name`] shows, and of nothing else.
    fn from_str(text: &str) -> Result<Self, NoName> {
        let (directory, last) = text.rsplit_once('/').ok_or(NoName)?;
        let digest = digest(last).ok_or(NoName)?;
        let kind = directory.split('/').next();
        let name = match kind {
            Some("chunks") => Self::Chunk(ChunkId(digest.0)),
            Some("tables") => Self::Table(digest.0),
            Some("layers") => Self::Layer(digest),
            Some("disks") => Self::Disk(digest),
            _ => return Err(NoName),
        };
        // What is between them is a matter of the whole name.
        if name.to_string() == text {
            Ok(name)
        } else {
            Err(NoName)
        }
    }
}

impl fmt::Display for Name {
    /// Where it lies below the directory of the store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().fmt(f)
    }
}

fn failed(doing: &'static str, name: Name, source: object_store::Error) -> Error {
    Error::Objects {
        doing,
        object: name.to_string(),
        source: Box::new(source),
    }
}

/// What is no error of an object, but of the way to it.
pub(crate) fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::File {
        doing: "reading",
        path: path.to_owned(),
        source,
    }
}
