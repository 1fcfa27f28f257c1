//! What is at a path, held by a descriptor: whoever changes names meanwhile, it stays what it was when it
//! was looked at. Holding opens nothing: no FIFO waits and no device wakes up (open(2), O_PATH).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

/// A file of any type.
#[derive(Debug)]
pub(crate) struct Held {
    descriptor: File,
    /// What it is and how large, as of then.
    pub(crate) metadata: Metadata,
}

impl Held {
    /// What a path leads to, through all links.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Self::new(rustix::fs::openat(
            CWD,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// What has that name in this directory; a link is itself.
    pub(crate) fn child(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = self.descriptor.as_fd();
        Self::new(rustix::fs::openat(directory, name, flags, Mode::empty())?)
    }

    fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let descriptor = File::from(descriptor);
        let metadata = descriptor.metadata()?;
        Ok(Self {
            descriptor,
            metadata,
        })
    }

    /// A path that leads to it and nothing else, as long as it is held.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()))
    }

    /// A regular file, to be read.
    pub(crate) fn open(&self) -> io::Result<File> {
        if !self.metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        File::open(self.path())
    }

    /// Names in a directory, in order.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let entries = fs::read_dir(self.path())?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// What a symbolic link says.
    pub(crate) fn target(&self) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(self.descriptor.as_fd(), "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_held_is_not_what_was_put_in_its_place() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::create_dir_all(at("shared/below")).unwrap();
        fs::create_dir(at("secrets")).unwrap();
        fs::write(at("shared/file"), "ours").unwrap();
        fs::write(at("shared/below/ours"), "").unwrap();
        fs::write(at("secrets/theirs"), "theirs").unwrap();
        let shared = Held::at(&at("shared")).unwrap();
        assert_eq!(shared.names().unwrap(), ["below", "file"]);
        let child = |name: &str| shared.child(OsStr::new(name)).unwrap();
        let (file, below) = (child("file"), child("below"));
        for (name, target) in [("file", "secrets/theirs"), ("below", "secrets")] {
            fs::rename(at("shared").join(name), at(&format!("old-{name}"))).unwrap();
            symlink(at(target), at("shared").join(name)).unwrap();
        }
        let text = io::read_to_string(file.open().unwrap()).unwrap();
        assert_eq!(text, "ours");
        assert_eq!(below.names().unwrap(), ["ours"]);
        let (file, below) = (child("file"), child("below"));
        assert_eq!(file.target().unwrap(), at("secrets/theirs"));
        assert!(file.open().is_err() && below.child(OsStr::new("theirs")).is_err());
        fs::remove_file(at("shared/file")).unwrap();
        nix::unistd::mkfifo(&at("shared/file"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(child("file").open().is_err());
    }
}
