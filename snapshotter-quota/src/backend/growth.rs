//! A growth of an image that has begun: a file beside it says so until the file system in it has all
//! of it. The limit is stored by then, so the next start ends what was interrupted.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use snapshot_core::{Error, Result};

fn mark(directory: &Path) -> PathBuf {
    directory.join("growing")
}

pub(super) fn begin(directory: &Path) -> Result<()> {
    let mark = mark(directory);
    File::create(&mark)
        .map(drop)
        .map_err(Error::io("make", mark))
}

pub(super) fn is_unfinished(directory: &Path) -> bool {
    mark(directory).exists()
}

pub(super) fn end(directory: &Path) -> Result<()> {
    let mark = mark(directory);
    match fs::remove_file(&mark) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("remove", mark)),
    }
}
