//! The key that signs the store's manifests, in a file of the store's owner.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::objects::unreadable;
use crate::{
    error::{Error, Result},
    signature::{PrivateKey, PublicKey},
};

const PRIVATE: &str = "key";
pub(super) const PUBLIC: &str = "key.pub";

/// A line with a key is short.
const BYTES_MAX: u64 = 200;

/// The key of the store in that directory.
pub(super) fn load(directory: &Path) -> Result<PrivateKey> {
    let path = directory.join(PRIVATE);
    let file = File::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoStore {
            directory: directory.to_owned(),
        },
        _ => unreadable(&path, source),
    })?;
    let mut line = String::new();
    let read = file.take(BYTES_MAX).read_to_string(&mut line);
    read.map_err(|source| unreadable(&path, source))?;
    line.parse().map_err(|what| Error::Key { path, what })
}

/// The public key that is in a file, which was opened at that path.
pub(super) fn public(file: File, path: PathBuf) -> Result<PublicKey> {
    let mut line = String::new();
    let read = file.take(BYTES_MAX).read_to_string(&mut line);
    read.map_err(|source| unreadable(&path, source))?;
    line.parse().map_err(|what| Error::Key { path, what })
}

/// Says whether the directory has a store, to somebody who may not read its private key.
pub(super) fn is_public_there(directory: &Path) -> Result<()> {
    let path = directory.join(PUBLIC);
    match fs::symlink_metadata(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NoStore {
            directory: directory.to_owned(),
        }),
        Err(error) => Err(unreadable(&path, error)),
    }
}

/// The key of the store in that directory; a new one if nothing is in it yet.
///
/// # Errors
/// [`Error::KeyLost`] for a store with disks and no key: hosts trust the one that it had.
pub(super) fn load_or_make(directory: &Path, is_empty: bool) -> Result<PrivateKey> {
    match load(directory) {
        Err(Error::NoStore { .. }) if is_empty => {}
        Err(Error::NoStore { .. }) => {
            return Err(Error::KeyLost {
                path: directory.join(PRIVATE),
            });
        }
        loaded => return loaded,
    }
    let failed = |source| Error::File {
        doing: "making the key of a store",
        path: directory.join(PRIVATE),
        source,
    };
    let mut random = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(failed)?;
    let key = PrivateKey::of(&random);
    // The public one first: a store with a key has both.
    let public = format!("{}\n", key.public());
    place(directory, PUBLIC, &public, Place::Anew).map_err(failed)?;
    match place(directory, PRIVATE, &key.to_line(), Place::Once) {
        // Another one was quicker: its key is the store's, whose public one may be ours now.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let key = load(directory)?;
            let public = format!("{}\n", key.public());
            place(directory, PUBLIC, &public, Place::Anew).map_err(failed)?;
            Ok(key)
        }
        placed => placed.map(|()| key).map_err(failed),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Anew,
    Once,
}

/// Puts a file whole and synced.
fn place(directory: &Path, name: &str, text: &str, how: Place) -> io::Result<()> {
    // Made with mode 0600.
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    if how == Place::Anew {
        let mode = fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
    }
    file.as_file().sync_all()?;
    let path = directory.join(name);
    match how {
        Place::Anew => file.persist(path)?,
        Place::Once => file.persist_noclobber(path)?,
    };
    File::open(directory)?.sync_all()
}
