//! What is in an image, said by a way that has nothing to do with the daemon: the whole disk, exported by the store and mounted
//! from a loop device. And reads that the kernel cannot answer by itself.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    process::{command, output_of},
    runtime::built,
    store::Store,
    wait::SOON,
};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    mount::{MntFlags, umount2},
};

/// The first image of a store.
pub(crate) struct Truth {
    directory: tempfile::TempDir,
}

impl Truth {
    pub(crate) fn of(store: &Store) -> Result<Self> {
        let this = Self {
            directory: tempfile::tempdir()?,
        };
        let disk = this.directory.path().join("disk");
        let mut export = command(built("snapshotter-remote")?);
        export.args(["store", "export", &store.chain_ids[0]]);
        output_of(export.arg(&disk).arg("--dir").arg(store.path()), SOON * 2)?;
        fs::create_dir(this.path())?;
        let mut mount = command("mount");
        mount.args(["-t", "erofs", "-o", "loop,ro"]);
        output_of(mount.arg(disk).arg(this.path()), SOON)?;
        Ok(this)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// All files that have contents below that directory of the image, as paths from its root.
    pub(crate) fn files(&self, below: &str) -> Result<Vec<PathBuf>> {
        let root = self.path();
        let mut found = Vec::new();
        let mut directories = vec![root.join(below)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let (path, kind) =
                    entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
                if kind.is_dir() {
                    directories.push(path);
                } else if kind.is_file() && fs::metadata(&path)?.len() > 0 {
                    found.push(path.strip_prefix(&root)?.to_owned());
                }
            }
        }
        ensure!(!found.is_empty(), "{below}: no files");
        found.sort();
        Ok(found)
    }

    /// The largest of those.
    pub(crate) fn largest(&self, below: &str) -> Result<PathBuf> {
        let files = self.files(below)?.into_iter();
        let length = |file: &PathBuf| self.path().join(file).metadata().map_or(0, |it| it.len());
        files.max_by_key(length).context("there are some")
    }

    /// Nothing of it is in use any more.
    pub(crate) fn end(&self) -> Result<()> {
        Ok(umount2(&self.path(), MntFlags::empty())?)
    }

    /// Compares part of a file with the same of a mounted image.
    pub(crate) fn check(&self, mounted: &Path, file: &Path, at: u64, bytes: usize) -> Result<()> {
        let mut expected = vec![0; bytes];
        let expected = &mut expected[..];
        let count = File::open(self.path().join(file))?.read_at(expected, at)?;
        let read = read_anew(&mounted.join(file), at, bytes)?;
        if read == expected[..count] {
            return Ok(());
        }
        let zeros = read.iter().filter(|byte| **byte == 0).count();
        bail!(
            "{}: {bytes} bytes at {at} are others: {} instead of {count}, {zeros} of them zeros",
            file.display(),
            read.len()
        )
    }
}

impl Drop for Truth {
    fn drop(&mut self) {
        // When a test has failed before it ended this.
        let _is_gone = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}

/// Reads part of a file, of which the kernel keeps nothing.
pub(crate) fn read_anew(path: &Path, at: u64, bytes: usize) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut read = vec![0; bytes];
    let mut count = 0;
    // Before an error, the kernel gives what it has.
    while count < bytes {
        let more = file.read_at(&mut read[count..], at + count as u64);
        match more.with_context(|| format!("{} at {at}", path.display()))? {
            0 => break,
            more => count += more,
        }
    }
    read.truncate(count);
    Ok(read)
}
