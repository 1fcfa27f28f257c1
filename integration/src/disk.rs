//! A file system of its own for one test or bench, in a file.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use sys::{LoopAccess, LoopCache, LoopDevice, LoopOptions};

use crate::{
    process::{command, output_of},
    sweep::{sweep, sweep_abandoned},
    tag::{Directories, Tag},
    wait::SOON,
};

/// A file system in a file, mounted until it is dropped; when this program is killed, until another
/// one sweeps for it. What runs on it must have ended before.
#[derive(Debug)]
pub struct Disk {
    tag: Tag,
    directories: Directories,
}

impl Disk {
    /// A file system in a sparse file. `options` are those of mount(2) beside its flags.
    pub fn sparse(kind: &str, bytes: u64, mkfs: &[&str], options: &str) -> Result<Self> {
        let disk = Self::claim()?;
        File::create(disk.image())?.set_len(bytes)?;
        disk.mount(LoopCache::Double, kind, mkfs, options)?;
        Ok(disk)
    }

    /// One for figures: the file is written through and its pages are not cached again, so that a
    /// sync costs what the file system and the disk below need, and no allocation below.
    pub fn allocated(kind: &str, bytes: u64, mkfs: &[&str], options: &str) -> Result<Self> {
        let disk = Self::claim()?;
        let image = disk.image();
        let mut file = File::create(&image)?;
        io::copy(&mut io::repeat(0).take(bytes), &mut file)
            .and_then(|_| file.sync_all())
            .with_context(|| format!("writing {bytes} bytes to {}", image.display()))?;
        disk.mount(LoopCache::Single, kind, mkfs, options)?;
        Ok(disk)
    }

    fn claim() -> Result<Self> {
        sweep_abandoned()?;
        let tag = Tag::fresh()?;
        let directories = Directories::claim(&tag)?;
        Ok(Self { tag, directories })
    }

    fn image(&self) -> PathBuf {
        self.beside().join("image")
    }

    fn mount(&self, cache: LoopCache, kind: &str, mkfs: &[&str], options: &str) -> Result<()> {
        let image = self.image();
        let mut make = command(format!("/sbin/mkfs.{kind}"));
        output_of(make.args(mkfs).arg(&image), SOON)?;
        let how = LoopOptions {
            access: LoopAccess::ReadWrite,
            cache,
            block_bytes: 512,
        };
        let device = LoopDevice::attach_with(&image, &how)
            .with_context(|| format!("attaching {}", image.display()))?;
        let (point, flags) = (self.path(), MsFlags::empty());
        fs::create_dir(&point)?;
        mount(
            Some(device.path()),
            &point,
            Some(kind),
            flags,
            Some(options),
        )
        .with_context(|| format!("mounting {kind} with {options:?}"))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.beside().join("disk")
    }

    /// A directory beside it, on the file system of temporary files.
    #[must_use]
    pub fn beside(&self) -> &Path {
        &self.directories.data
    }
}

impl Drop for Disk {
    #[expect(
        clippy::print_stderr,
        reason = "what is left would puzzle who looks at the machine"
    )]
    fn drop(&mut self) {
        if let Err(error) = sweep(&self.tag, &BTreeSet::new()) {
            eprintln!("cleaning up after {}: {error:#}", self.tag);
        }
    }
}
