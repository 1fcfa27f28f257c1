//! The two directories that overlay writes to.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use snapshot_core::{Error, Result};

/// Open directories of a snapshot.
#[derive(Debug)]
pub(super) struct Directories {
    pub(super) upper: (PathBuf, File),
    pub(super) work: (PathBuf, File),
}

/// Makes `fs` and `work` in a folder. The first becomes the container's `/`: its mode is set
/// whatever the umask is.
pub(super) fn make(folder: &Path) -> Result<Directories> {
    Ok(Directories {
        upper: directory(folder.join("fs"), 0o755)?,
        work: directory(folder.join("work"), 0o711)?,
    })
}

fn directory(path: PathBuf, mode: u32) -> Result<(PathBuf, File)> {
    make_one(&path, mode)?;
    let open = open(&path)?;
    Ok((path, open))
}

/// Makes a directory with exactly this mode; one that is there keeps its own, which a container
/// may have changed.
pub(super) fn make_one(path: &Path, mode: u32) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(Error::io("make directory", path))?,
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(Error::io("set the mode of", path))
}

/// Opens a directory that is no link.
pub(super) fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
        .open(path)
        .map_err(Error::io("open", path))
}
