//! What the kernel can do with disks, found out with a small one. It leaves nothing behind.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use disk::{Digest, Form, Image, Layer, Limits, Tree};
use mounts::unmount_tree;
use snapshot_core::{Error, Result, one_line};

use super::{
    attach::{Carrier, mount},
    files,
};

/// What is in the only file of the disk.
const CONTENTS: &[u8] = b"what was written is what is read\n";

/// A disk on which something is tried.
struct Trial {
    directory: PathBuf,
    metadata: PathBuf,
    blob: File,
}

/// What disks can be mounted by, or why by nothing.
pub(super) fn carrier(root: &Path) -> Result<Result<Carrier, String>> {
    let trial = Trial::make(&root.join("probe"))?;
    let mut said = Vec::new();
    for carrier in [Carrier::Files, Carrier::Loops] {
        match trial.mounts(carrier) {
            Ok(()) => return Ok(Ok(carrier)),
            Err(error) => said.push(format!("{carrier}: {}", one_line(&error))),
        }
    }
    Ok(Err(said.join("; ")))
}

impl Trial {
    fn make(directory: &Path) -> Result<Self> {
        clear(directory)?;
        let this = |blob| Self {
            directory: directory.to_owned(),
            metadata: directory.join("metadata"),
            blob,
        };
        files::make_directory(&directory.join("mounted"))?;
        let path = directory.join("blob");
        let mut options = File::options();
        let blob = options.read(true).write(true).create_new(true).open(&path);
        let this = this(blob.map_err(Error::io("make", path))?);
        let failed = |error: disk::Error| {
            let why = one_line(&error);
            Error::io("make a disk at", directory)(std::io::Error::other(why))
        };
        let layer = Layer::read(&tar()[..], &this.blob, &Limits::GENEROUS).map_err(failed)?;
        let mut tree = Tree::new();
        tree.apply(&layer, Digest([1; 32])).map_err(failed)?;
        let image = Image::of(&tree, Digest([1; 32]), Form::Devices).map_err(failed)?;
        let metadata = File::create(&this.metadata);
        let metadata = metadata.map_err(Error::io("make", &this.metadata))?;
        image.write(metadata).map_err(failed)?;
        Ok(this)
    }

    fn mounts(&self, carrier: Carrier) -> Result<()> {
        let target = self.directory.join("mounted");
        mount(carrier, &self.metadata, &[&self.blob], &target)?;
        let path = target.join("file");
        let read = fs::read(&path).map_err(Error::io("read", &path));
        unmount(&target)?;
        if read? == CONTENTS {
            return Ok(());
        }
        let why = "something else was read than was written";
        Err(Error::Precondition(why.to_owned()))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.directory) {
            let why = error.in_one_line();
            tracing::warn!(why, "what was tried is left");
        }
    }
}

/// Takes away what a trial, or one that was killed, has left.
fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        unmount(&directory.join("mounted"))?;
    }
    files::remove_directory(directory)
}

/// Takes what is mounted there away.
pub(super) fn unmount(target: &Path) -> Result<()> {
    unmount_tree(target).map_err(|error| {
        let why = one_line(&error);
        Error::io("unmount", target)(std::io::Error::other(why))
    })
}

fn tar() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(CONTENTS.len() as u64);
    let mut archive = tar::Builder::new(Vec::new());
    let written = archive.append_data(&mut header, "file", CONTENTS);
    written.expect("memory takes everything");
    archive.into_inner().expect("memory takes everything")
}
