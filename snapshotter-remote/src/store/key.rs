//! The key that signs the store's manifests, in a file of the store's owner.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use object_store::PutMode;
use tempfile::NamedTempFile;

use super::{directory::unreadable, objects::Objects};
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
    let key = private(&directory.join(PRIVATE))?;
    key.ok_or_else(|| Error::NoStore {
        store: directory.display().to_string(),
    })
}

/// The private key in a file, if that is there.
fn private(path: &Path) -> Result<Option<PrivateKey>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| unreadable(path, source))?,
    };
    let mut line = String::new();
    let read = file.take(BYTES_MAX).read_to_string(&mut line);
    read.map_err(|source| unreadable(path, source))?;
    let path = path.to_owned();
    let parsed = line.parse().map_err(|what| Error::Key { path, what });
    parsed.map(Some)
}

/// The same of a file that is carried from machine to machine.
fn closed(path: &Path) -> Result<Option<PrivateKey>> {
    match File::open(path) {
        Ok(file) => only_ours(&file, path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, error)),
    }
    private(path)
}

/// Refuses a file with a secret that everybody may read or write.
pub(super) fn only_ours(file: &File, path: &Path) -> Result<()> {
    let metadata = file.metadata().map_err(|source| unreadable(path, source))?;
    if metadata.permissions().mode() & 0o007 == 0 {
        return Ok(());
    }
    Err(Error::Setting(format!(
        "{}: everybody on this machine can use the secret in it: chmod 0600",
        path.display()
    )))
}

/// The public key of the store in a bucket.
///
/// # Errors
/// [`Error::NoStore`], one that is no key, and what the bucket answers.
pub(super) fn public_in_bucket(objects: &Objects) -> Result<PublicKey> {
    let store = objects.shown();
    let bytes = usize::try_from(BYTES_MAX).expect("a line is short");
    let Some(line) = objects.read(PUBLIC, bytes)? else {
        return Err(Error::NoStore { store });
    };
    let path = PathBuf::from(format!("{store}/{PUBLIC}"));
    let line = String::from_utf8_lossy(&line);
    line.parse().map_err(|what| Error::Key { path, what })
}

/// The private key of the store in a bucket, whose public one that is; none where nobody has said where it is.
///
/// # Errors
/// A file that is not there, or has not that key.
pub(super) fn private_of_bucket(
    file: Option<&Path>,
    public: &PublicKey,
) -> Result<Option<PrivateKey>> {
    let Some(path) = file else {
        return Ok(None);
    };
    let key = closed(path)?.ok_or_else(|| {
        Error::Setting(format!(
            "{} is not there, which --key-file (s3.key_file) names: the private key of the store is wanted, which lies where its \
             first image was added",
            path.display()
        ))
    })?;
    if key.public() == *public {
        return Ok(Some(key));
    }
    Err(Error::Key {
        path: path.to_owned(),
        what: "it is another store's: key.pub in the bucket is not its public key",
    })
}

/// The private key of the store in a bucket; where there is neither, a new one, and its public one in the bucket.
///
/// # Errors
/// As [`private_of_bucket`], [`Error::KeyLost`] for a bucket with disks and no public key, and what the bucket answers.
pub(super) fn load_or_make_for_bucket(
    objects: &Objects,
    file: Option<&Path>,
) -> Result<PrivateKey> {
    let path = file.ok_or_else(|| {
        Error::Setting(format!(
            "who adds to {} signs with its private key, which is not in the bucket: say in which file it is, or is to \
             be made, with --key-file (s3.key_file)",
            objects.shown()
        ))
    })?;
    match public_in_bucket(objects) {
        Err(Error::NoStore { .. }) => {}
        found => {
            let key = private_of_bucket(file, &found?)?;
            return Ok(key.expect("a file was named"));
        }
    }
    if !objects.disks()?.is_empty() {
        return Err(Error::KeyLost {
            path: format!("{}/{PUBLIC}", objects.shown()).into(),
        });
    }
    let (key, is_new) = match closed(path)? {
        Some(key) => (key, false),
        None => make_private(path)?,
    };
    let line = format!("{}\n", key.public()).into_bytes();
    if objects.write(PUBLIC, line.clone(), PutMode::Create)? {
        if objects.write(PUBLIC, line, PutMode::Create)? {
            objects.delete(PUBLIC)?;
            return Err(Error::Setting(format!(
                "the server of {} writes over what is there although it is told not to (If-None-Match): a store needs one that \
                 does not",
                objects.shown()
            )));
        }
        return Ok(key);
    }
    // Another one was quicker.
    if public_in_bucket(objects)? == key.public() {
        return Ok(key);
    }
    if is_new {
        // It would be in the way of the right one.
        fs::remove_file(path).map_err(|source| making(path, source))?;
    }
    Err(Error::Setting(format!(
        "another has made the store in {} at the same time: carry its private key to {} and add again",
        objects.shown(),
        path.display()
    )))
}

/// A new private key in a file, or that of another who was quicker; and whether it is new.
fn make_private(path: &Path) -> Result<(PrivateKey, bool)> {
    let key = PrivateKey::of(&random()?);
    let directory = path.parent().filter(|above| !above.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match place(directory, &name, &key.to_line(), As::Once) {
        Ok(()) => Ok((key, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match closed(path)? {
            Some(key) => Ok((key, false)),
            None => Err(making(path, error)),
        },
        Err(error) => Err(making(path, error)),
    }
}

fn making(path: &Path, source: io::Error) -> Error {
    Error::File {
        doing: "making the key of a store in",
        path: path.to_owned(),
        source,
    }
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
            store: directory.display().to_string(),
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
    let key = PrivateKey::of(&random()?);
    // The public one first: a store with a key has both.
    let public = format!("{}\n", key.public());
    place(directory, PUBLIC, &public, As::Anew).map_err(failed)?;
    match place(directory, PRIVATE, &key.to_line(), As::Once) {
        // Another one was quicker: its key is the store's, whose public one may be ours now.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let key = load(directory)?;
            let public = format!("{}\n", key.public());
            place(directory, PUBLIC, &public, As::Anew).map_err(failed)?;
            Ok(key)
        }
        placed => placed.map(|()| key).map_err(failed),
    }
}

/// Bytes that nobody can guess.
pub(super) fn random<const COUNT: usize>() -> Result<[u8; COUNT]> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; COUNT];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|source| unreadable(path, source))?;
    Ok(bytes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    Anew,
    Once,
}

/// Puts a file whole and synced.
fn place(directory: &Path, name: &str, text: &str, how: As) -> io::Result<()> {
    // Made with mode 0600.
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    if how == As::Anew {
        let mode = fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
    }
    file.as_file().sync_all()?;
    let path = directory.join(name);
    match how {
        As::Anew => file.persist(path)?,
        As::Once => file.persist_noclobber(path)?,
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::lease::PACE;

    #[test]
    fn the_key_of_a_bucket_is_made_once_and_kept_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let objects = Objects::in_memory(PACE);
        let made = load_or_make_for_bucket(&objects, Some(&path)).unwrap();
        let again = load_or_make_for_bucket(&objects, Some(&path)).unwrap();
        assert_eq!(made.public(), again.public());
        // Who was about to make it, too.
        let (same, is_new) = make_private(&path).unwrap();
        assert_eq!((same.public(), is_new), (made.public(), false));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let open = load_or_make_for_bucket(&objects, Some(&path)).unwrap_err();
        assert!(open.to_string().contains("chmod 0600"), "{open}");
        fs::remove_file(&path).unwrap();
        let none = load_or_make_for_bucket(&objects, Some(&path)).unwrap_err();
        assert!(none.to_string().contains("--key-file"), "{none}");
    }

    #[test]
    fn a_key_is_made_in_the_working_directory() {
        let name = format!("key-of-{}", std::process::id());
        let path = Path::new(&name);
        let made = make_private(path);
        fs::remove_file(path).unwrap();
        assert!(made.unwrap().1);
    }
}
