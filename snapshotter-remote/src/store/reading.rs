//! Objects for whoever may read a store and nothing more: its server.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{Mutex, PoisonError},
};

use disk::Digest;

use super::{
    Traces, directory::unreadable, files::Files, key, name::Name, objects::Objects, place::Place,
    streamed::Streamed,
};
use crate::{
    error::{Error, Result},
    signature::{self, PublicKey},
};

/// A store that is read.
#[derive(Debug)]
pub struct Reader {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Files(Files),
    Bucket(Box<Objects>),
}

/// An object's bytes.
#[derive(Debug)]
pub struct Opened {
    contents: Contents,
    /// Its length.
    pub bytes: u64,
    /// What changes when it is written anew.
    written: String,
}

#[derive(Debug)]
enum Contents {
    /// A regular file.
    File(File),
    Whole(Vec<u8>),
    /// One reads at a time.
    Streamed(Box<Mutex<Streamed>>),
}

impl Reader {
    /// Of the store there; the private key is not needed and not looked at.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        let source = match &place {
            Place::Directory(path) => Source::Files(Files::open(path)?),
            Place::Bucket(..) => {
                let objects = Objects::at(&place)?;
                key::public_in_bucket(&objects)?;
                Source::Bucket(Box::new(objects))
            }
        };
        Ok(Self { source })
    }

    /// What hosts have told of its disks.
    #[must_use]
    pub fn traces(&self) -> Traces {
        match &self.source {
            Source::Files(files) => Traces::of(files.path()),
            Source::Bucket(objects) => objects.traces(),
        }
    }

    /// An object, if it is there.
    ///
    /// # Errors
    /// What the file system or the bucket answers, and anything else than a file under an object's name.
    pub fn object(&self, name: Name) -> Result<Option<Opened>> {
        match &self.source {
            Source::Files(files) => {
                let found = files.file(&name.to_string())?;
                Ok(found.map(|(file, metadata)| Opened {
                    bytes: metadata.len(),
                    written: format!(
                        "{:x}",
                        i128::from(metadata.mtime()) * 1_000_000_000
                            + i128::from(metadata.mtime_nsec())
                    ),
                    contents: Contents::File(file),
                }))
            }
            Source::Bucket(objects) => in_bucket(objects, name),
        }
    }

    /// All bytes of an object, which nobody has verified.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Damaged`] for more than `bytes_max`, and as [`Reader::object`].
    pub fn get(&self, name: Name, bytes_max: usize) -> Result<Vec<u8>> {
        let files = match &self.source {
            Source::Files(files) => files,
            Source::Bucket(objects) => return objects.get(name, bytes_max),
        };
        let shown = name.to_string();
        let Some(object) = self.object(name)? else {
            return Err(Error::Absent { object: shown });
        };
        let bytes = usize::try_from(object.bytes).ok();
        let Some(bytes) = bytes.filter(|bytes| *bytes <= bytes_max) else {
            return Err(Error::damaged(shown, "it is longer than it may be"));
        };
        let read = object.read(0, bytes);
        read.map_err(|source| unreadable(&files.path().join(&shown), source))
    }

    /// The key that has signed what is to be believed.
    ///
    /// # Errors
    /// [`Error::NoStore`] where there is none, what the file system or the bucket answers, and what is no regular file or has no key.
    pub fn key(&self) -> Result<PublicKey> {
        match &self.source {
            Source::Files(files) => files.key(),
            Source::Bucket(objects) => key::public_in_bucket(objects),
        }
    }

    /// Chains that there are manifests of, by name, if they are no more than so many.
    ///
    /// # Errors
    /// What the file system or the bucket answers.
    pub fn disks(&self, most: usize) -> Result<Option<Vec<Digest>>> {
        match &self.source {
            Source::Files(files) => files.disks(most),
            Source::Bucket(objects) => {
                Ok(Some(objects.disks()?).filter(|found| found.len() <= most))
            }
        }
    }
}

/// A manifest whole, because its end is looked at first; anything else as it comes.
fn in_bucket(objects: &Objects, name: Name) -> Result<Option<Opened>> {
    let Some(mut streamed) = Streamed::begin(objects, name)? else {
        return Ok(None);
    };
    let (bytes, written) = (streamed.bytes(), streamed.written());
    let contents = match name {
        Name::Disk(_) => {
            let shown = name.to_string();
            let count = usize::try_from(bytes).ok();
            let Some(count) = count.filter(|count| *count <= signature::BYTES_MAX) else {
                return Err(Error::damaged(shown, "it is longer than it may be"));
            };
            let whole = streamed.read(0, count);
            Contents::Whole(whole.map_err(|source| objects.broken(name, source))?)
        }
        Name::Chunk(_) | Name::Table(_) | Name::Layer(_) => {
            Contents::Streamed(Box::new(Mutex::new(streamed)))
        }
    };
    Ok(Some(Opened {
        bytes,
        written,
        contents,
    }))
}

impl Opened {
    /// What changes with the bytes of the object: when they were written (in a bucket its own tag of them), so that one that was damaged
    /// and made again is another; and, should clocks or copies lie, the length of what another zstd
    /// may have made, half the signature of what another key may have signed.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn version(&self, name: Name) -> Result<String> {
        let written = &self.written;
        match name {
            Name::Disk(_) => {
                // The signature is the last of it, and half of that is enough.
                let at = self.bytes.saturating_sub(64);
                let half = self.read(at, 32);
                let half =
                    half.map_err(|source| unreadable(Path::new(&name.to_string()), source))?;
                let half = half.try_into().expect("so many were asked for");
                Ok(format!("{}-{written}", Digest(half)))
            }
            Name::Chunk(_) | Name::Table(_) | Name::Layer(_) => {
                Ok(format!("{:x}-{written}", self.bytes))
            }
        }
    }

    /// So many bytes from there on.
    ///
    /// # Errors
    /// What the file system or the bucket answers, and that it has become shorter.
    pub fn read(&self, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        match &self.contents {
            Contents::File(file) => {
                let mut read = vec![0; bytes];
                file.read_exact_at(&mut read, at)?;
                Ok(read)
            }
            Contents::Whole(whole) => {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let read = whole.get(at..).and_then(|rest| rest.get(..bytes));
                Ok(read.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
            }
            Contents::Streamed(streamed) => {
                let mut streamed = streamed.lock().unwrap_or_else(PoisonError::into_inner);
                streamed.read(at, bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use nix::sys::stat::Mode;
    use tempfile::tempdir;

    use super::*;
    use crate::store::Store;

    #[test]
    fn links_and_other_things_in_a_store_are_not_followed() {
        let directory = tempdir().unwrap();
        let path = directory.path();
        Store::create(path).unwrap();
        let reader = Reader::open(path).unwrap();
        let table = Name::Table([1; 32]);
        fs::remove_dir(path.join("tables")).unwrap();
        assert!(reader.object(table).unwrap().is_none(), "no directory");
        fs::create_dir(path.join("tables")).unwrap();
        assert!(reader.object(table).unwrap().is_none(), "no file");
        let at = path.join(table.to_string());
        fs::write(&at, "table").unwrap();
        let opened = reader.object(table).unwrap().unwrap();
        assert_eq!(
            (opened.bytes, opened.read(1, 3).unwrap()),
            (5, b"abl".to_vec())
        );
        assert_eq!(reader.get(table, 5).unwrap(), b"table");
        let error = reader.get(table, 4).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        let error = reader.get(Name::Table([9; 32]), 5).unwrap_err();
        assert!(matches!(error, Error::Absent { .. }), "{error}");

        symlink(
            path.join("key"),
            path.join(Name::Table([2; 32]).to_string()),
        )
        .unwrap();
        assert!(reader.object(Name::Table([2; 32])).is_err(), "a link");
        fs::create_dir(path.join(Name::Table([3; 32]).to_string())).unwrap();
        assert!(reader.object(Name::Table([3; 32])).is_err(), "a directory");
        fs::rename(path.join("tables"), path.join("elsewhere")).unwrap();
        symlink(path.join("elsewhere"), path.join("tables")).unwrap();
        assert!(reader.object(table).is_err(), "a directory that is a link");

        assert_eq!(reader.disks(1).unwrap(), Some(Vec::new()));
        fs::rename(path.join("disks/1"), path.join("others")).unwrap();
        symlink(path.join("others"), path.join("disks/1")).unwrap();
        assert!(reader.disks(1).is_err(), "disks behind a link");
        reader.key().unwrap();
        fs::rename(path.join("key.pub"), path.join("other.pub")).unwrap();
        let error = reader.key().unwrap_err();
        assert!(matches!(error, Error::NoStore { .. }), "{error}");
        symlink(path.join("other.pub"), path.join("key.pub")).unwrap();
        assert!(reader.key().is_err(), "a key that is a link");
        fs::remove_file(path.join("key.pub")).unwrap();
        nix::unistd::mkfifo(&path.join("key.pub"), Mode::S_IRWXU).unwrap();
        assert!(reader.key().is_err(), "a fifo");
    }

    #[test]
    fn disks_are_listed_by_name_if_they_are_not_too_many() {
        let directory = tempdir().unwrap();
        let path = directory.path();
        Store::create(path).unwrap();
        let reader = Reader::open(path).unwrap();
        let names = [Digest([2; 32]), Digest([1; 32])];
        let file = |name: &str| path.join("disks/1").join(name);
        for name in names {
            fs::write(file(&name.to_string()), "").unwrap();
        }
        fs::write(file("note"), "").unwrap();
        assert_eq!(reader.disks(2).unwrap(), Some(vec![names[1], names[0]]));
        assert_eq!(reader.disks(1).unwrap(), None);
        fs::remove_dir_all(path.join("disks")).unwrap();
        assert_eq!(reader.disks(1).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn a_directory_without_a_store_is_told() {
        let directory = tempdir().unwrap();
        let error = Reader::open(directory.path()).unwrap_err();
        assert!(matches!(error, Error::NoStore { .. }), "{error}");
    }
}
