//! Files of a store's directory for whoever may read them and nothing more. They are opened below it, name by name, and no symbolic link
//! is followed.

use std::{
    fs::{File, Metadata},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use disk::Digest;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use super::{directory::unreadable, key, name::Name};
use crate::{
    error::{Error, Result},
    signature::{PublicKey, digest},
};

/// The directory of a store.
#[derive(Debug)]
pub(super) struct Files {
    directory: OwnedFd,
    path: PathBuf,
}

impl Files {
    /// Of the store in that directory; the private key is not needed and not looked at.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(path, flags, Mode::empty());
        let directory = directory.map_err(|errno| unreadable(path, errno.into()))?;
        key::is_public_there(path)?;
        Ok(Self {
            directory,
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The key that has signed what is to be believed.
    ///
    /// # Errors
    /// [`Error::NoStore`] where there is none, what the file system answers, and what is no regular file or has no key.
    pub(super) fn key(&self) -> Result<PublicKey> {
        let Some((file, _)) = self.file(key::PUBLIC)? else {
            return Err(Error::NoStore {
                store: self.path.display().to_string(),
            });
        };
        key::public(file, self.path.join(key::PUBLIC))
    }

    /// Chains that there are manifests of, by name, if they are no more than so many.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn disks(&self, most: usize) -> Result<Option<Vec<Digest>>> {
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
    pub(super) fn file(&self, name: &str) -> Result<Option<(File, Metadata)>> {
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
