//! The file beside a snapshot's contents that says again what the store says of it, so that a
//! lost store can be made anew.
//!
//! It is whole whenever the process ends: written before the directory gets its name, and replaced
//! by rename(2). It is not synced: a loss of power may leave it empty or old.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::record;
use crate::{Error, Result, Snapshot};

const NAME: &str = "snapshot.json";
const UNFINISHED: &str = "snapshot.json.new";

/// Above what bounded labels and names give, each byte of them escaped.
const BYTES_MAX: u64 = 16 << 20;

/// What is found beside a snapshot's contents.
#[derive(Debug)]
pub(crate) enum Sidecar {
    /// What the store had said.
    Whole(Box<Snapshot>),
    /// Not written yet.
    Missing,
    /// Why it says nothing.
    Torn(String),
}

impl Sidecar {
    /// Writes the first one, into a directory that nobody looks at yet.
    ///
    /// # Errors
    /// What keeps it from being written.
    pub(crate) fn write(directory: &Path, snapshot: &Snapshot) -> Result<()> {
        put(&directory.join(NAME), snapshot)
    }

    /// Puts another in its place.
    ///
    /// # Errors
    /// What keeps it from being written; the old one stays then.
    pub(crate) fn replace(directory: &Path, snapshot: &Snapshot) -> Result<()> {
        let unfinished = directory.join(UNFINISHED);
        let put = put(&unfinished, snapshot).and_then(|()| {
            let path = directory.join(NAME);
            fs::rename(&unfinished, &path).map_err(Error::io("replace", path))
        });
        if put.is_err() {
            // What is left of it would count to what the snapshot holds.
            let _gone = fs::remove_file(&unfinished);
        }
        put
    }

    /// # Errors
    /// What keeps it from being read.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(NAME);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let mut text = Vec::new();
        let read = file.take(BYTES_MAX).read_to_end(&mut text);
        read.map_err(Error::io("read", path))?;
        Ok(match record::from_text(&text) {
            Ok(snapshot) => Self::Whole(Box::new(snapshot)),
            Err(why) => Self::Torn(why),
        })
    }
}

fn put(path: &Path, snapshot: &Snapshot) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.custom_flags(nix::libc::O_NOFOLLOW);
    let written = options
        .open(path)
        .and_then(|mut file: File| file.write_all(&record::to_text(snapshot)));
    written.map_err(Error::io("write", path))
}
