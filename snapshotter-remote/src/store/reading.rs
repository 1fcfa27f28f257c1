//! Objects for whoever may read a store and nothing more: its server. Files are opened below the store's
//! directory, name by name, and no symbolic link is followed.

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use disk::Digest;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use super::{
    key,
    objects::{Name, unreadable},
};
use crate::{
    error::{Error, Result},
    signature::{PublicKey, digest},
};

/// The directory of a store.
#[derive(Debug)]
pub struct Reader {
    directory: OwnedFd,
    path: PathBuf,
}

/// An object's bytes.
#[derive(Debug)]
pub struct Opened {
    /// A regular file.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// When it was written, in nanoseconds since 1970.
    modified: i128,
}

impl Reader {
    /// Of the store in that directory; the private key is not needed and not looked at.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(path, flags, Mode::empty());
        let directory = directory.map_err(|errno| unreadable(path, errno.into()))?;
        key::is_public_there(path)?;
        Ok(Self {
            directory,
            path: path.to_owned(),
        })
    }

    /// An object, if it is there.
    ///
    /// # Errors
    /// What the file system answers, and anything else than a file under an object's name.
    pub fn object(&self, name: Name) -> Result<Option<Opened>> {
        let Some((file, metadata)) = self.file(&name.to_string())? else {
            return Ok(None);
        };
        Ok(Some(Opened {
            bytes: metadata.len(),
            modified: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
            file,
        }))
    }

    /// All bytes of an object, which nobody has verified.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Damaged`] for more than `bytes_max`, and as [`Reader::object`].
    pub fn get(&self, name: Name, bytes_max: usize) -> Result<Vec<u8>> {
        let shown = name.to_string();
        let Some(object) = self.object(name)? else {
            return Err(Error::Absent { object: shown });
        };
        let bytes = usize::try_from(object.bytes).ok();
        let Some(bytes) = bytes.filter(|bytes| *bytes <= bytes_max) else {
            return Err(Error::damaged(shown, "it is longer than it may be"));
        };
        let read = object.read(0, bytes);
        read.map_err(|source| unreadable(&self.path.join(&shown), source))
    }

    /// The key that has signed what is to be believed.
    ///
    /// # Errors
    /// [`Error::NoStore`] where there is none, what the file system answers, and what is no regular file or has no key.
    pub fn key(&self) -> Result<PublicKey> {
        let Some((file, _)) = self.file(key::PUBLIC)? else {
            return Err(Error::NoStore {
                directory: self.path.clone(),
            });
        };
        key::public(file, self.path.join(key::PUBLIC))
    }

    /// Chains that there are manifests of, by name, if they are no more than so many.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn disks(&self, most: usize) -> Result<Option<Vec<Digest>>> {
        let shown = Name::Disk(Digest([0; 32])).directory();
        let failed = |errno: Errno| unreadable(&self.path.join(&shown), errno.into());
        let mut found = Vec::new();
        let opened = self.descend(&shown, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let mut directory = match opened.and_then(Dir::from_fd) {
            Err(Errno::ENOENT) => return Ok(Some(found)),
            opened => opened.map_err(failed)?,
        };
        for entry in directory.iter() {
            let entry = entry.map_err(failed)?;
            found.extend(entry.file_name().to_str().ok().and_then(digest));
            // What else there is, is not looked at.
            if found.len() > most {
                return Ok(None);
            }
        }
        found.sort_unstable();
        Ok(Some(found))
    }

    /// A regular file by its name below the store's directory, if it is there.
    fn file(&self, name: &str) -> Result<Option<(File, Metadata)>> {
        let failed = |source: io::Error| unreadable(&self.path.join(name), source);
        // Not blocking: what else may lie under the name (a fifo) is not waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = match self.descend(name, flags) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            let what = "it is no regular file";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        Ok(Some((file, metadata)))
    }

    /// Opens a name below the store's directory with these flags.
    fn descend(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let never_followed = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut below: Option<OwnedFd> = None;
        let mut rest = name;
        while let Some((directory, behind)) = rest.split_once('/') {
            let above = below.as_ref().unwrap_or(&self.directory);
            let on_the_way = OFlag::O_PATH | OFlag::O_DIRECTORY | never_followed;
            below = Some(openat(above, directory, on_the_way, Mode::empty())?);
            rest = behind;
        }
        let above = below.as_ref().unwrap_or(&self.directory);
        openat(above, rest, flags | never_followed, Mode::empty())
    }
}

impl Opened {
    /// What changes with the bytes of the object: when they were written, so that one that was damaged
    /// and made again is another; and, should clocks or copies lie, the length of what another zstd
    /// may have made, half the signature of what another key may have signed.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn version(&self, name: Name) -> Result<String> {
        let modified = self.modified;
        match name {
            Name::Disk(_) => {
                // The signature is the last of it, and half of that is enough.
                let mut half = [0; 32];
                let at = self.bytes.saturating_sub(64);
                let read = self.file.read_exact_at(&mut half, at);
                read.map_err(|source| unreadable(Path::new(&name.to_string()), source))?;
                Ok(format!("{}-{modified:x}", Digest(half)))
            }
            Name::Chunk(_) | Name::Table(_) | Name::Layer(_) => {
                Ok(format!("{:x}-{modified:x}", self.bytes))
            }
        }
    }

    /// So many bytes from there on.
    ///
    /// # Errors
    /// What the file system answers, and that it has become shorter.
    pub fn read(&self, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = vec![0; bytes];
        self.file.read_exact_at(&mut read, at)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::tempdir;

    use super::*;
    use crate::{
        chunk::ChunkId,
        store::{Store, objects::NoName},
    };

    #[test]
    fn names_are_read_as_they_are_written_and_not_otherwise() {
        let digits = "ab".repeat(32);
        let names = [
            Name::Chunk(ChunkId([0xab; 32])),
            Name::Table([0xab; 32]),
            Name::Layer(Digest([0xab; 32])),
            Name::Disk(Digest([0xab; 32])),
        ];
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for wrong in [
            String::new(),
            digits.clone(),
            format!("chunks/{digits}"),
            format!("chunks/ac/{digits}"),
            format!("chunks/ab/x/{digits}"),
            format!("chunks//ab/{digits}"),
            format!("/chunks/ab/{digits}"),
            format!("chunks/ab/{digits}/"),
            format!("chunks/ab/{digits}0"),
            format!("chunks/ab/{}", &digits[1..]),
            format!("chunks/AB/{}", digits.to_uppercase()),
            format!("disks/{digits}"),
            format!("disks/2/{digits}"),
            format!("disks/../disks/1/{digits}"),
            format!("key/{digits}"),
            "key".to_owned(),
        ] {
            assert_eq!(wrong.parse::<Name>(), Err(NoName), "{wrong}");
        }
    }

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
