//! A file system of a snapshot's own, mounted in its directory. Nobody else mounts anything below
//! the root, so the place is the record: what is mounted there is ours.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use mounts::{Mount, MountOptions};
use nix::sys::statvfs::{Statvfs, statvfs};
use snapshot_core::{Error, Result};

use super::{Record, directories};

/// Where in a snapshot's directory.
pub(super) fn place(directory: &Path) -> PathBuf {
    directory.join(Record::SEPARATE)
}

/// Whether it is mounted.
pub(super) fn is_mounted(directory: &Path) -> Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|about| about.dev());
    let place = place(directory);
    let outside = device(directory).map_err(Error::io("look at", directory))?;
    match device(&place) {
        Ok(inside) => Ok(inside != outside),
        // xfs that has shut itself down says nothing else.
        Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", place)(error)),
    }
}

/// Mounts it.
pub(super) fn mount(directory: &Path, kind: &str, source: &Path, words: &[String]) -> Result<()> {
    let place = place(directory);
    directories::make_one(&place, 0o711)?;
    apply(&place, kind, source, words)
}

/// Changes its options.
pub(super) fn remount(directory: &Path, kind: &str, words: &[String]) -> Result<()> {
    let words = [&["remount".to_owned()], words].concat();
    apply(&place(directory), kind, Path::new(kind), &words)
}

/// Mounts a file system at a directory that is there.
pub(super) fn apply(target: &Path, kind: &str, source: &Path, words: &[String]) -> Result<()> {
    let options = MountOptions::parse(words)
        .map_err(|error| Error::io("mount", target)(io::Error::other(error)))?;
    let mount = Mount {
        source: source.to_string_lossy().into_owned(),
        target: String::new(),
        fstype: kind.to_owned(),
        options,
    };
    mounts::apply_host(&mount, target).map_err(|error| failed("mount", target, error))
}

/// Takes it away; what is in use goes with its last user.
pub(super) fn unmount(directory: &Path) -> Result<()> {
    let place = place(directory);
    mounts::unmount_tree(&place).map_err(|error| failed("unmount", &place, error))
}

fn failed(action: &'static str, path: &Path, error: mounts::Error) -> Error {
    let source = match error.errno() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error),
    };
    Error::io(action, path)(source)
}

/// What is used of a mounted file system, its own needs included.
pub(super) fn used(directory: &Path) -> Result<(u64, u64)> {
    let about = measure(&place(directory))?;
    let bytes = about.blocks().saturating_sub(about.blocks_free()) * about.fragment_size();
    Ok((bytes, about.files().saturating_sub(about.files_free())))
}

/// How large a file system is, and how much of that can still be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: u64,
    pub(super) bytes_left: u64,
    pub(super) inodes: u64,
    pub(super) inodes_left: u64,
}

/// `None` where nothing is mounted.
pub(super) fn room(directory: &Path) -> Result<Option<Room>> {
    if !is_mounted(directory)? {
        return Ok(None);
    }
    let about = measure(&place(directory))?;
    let size = about.fragment_size();
    Ok(Some(Room {
        bytes: about.blocks().saturating_mul(size),
        bytes_left: about.blocks_available().saturating_mul(size),
        inodes: about.files(),
        inodes_left: about.files_available(),
    }))
}

fn measure(place: &Path) -> Result<Statvfs> {
    statvfs(place).map_err(|errno| Error::io("measure", place)(errno.into()))
}
