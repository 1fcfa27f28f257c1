//! A file system in an image, mounted by a loop device; gone when dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use integration::process::{command, output_of};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use sys::{LoopAccess, LoopCache, LoopDevice, LoopOptions, project_quota::Quota};

pub(crate) const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// With which writing beyond a hard limit fails.
    pub(crate) fn full(self) -> Errno {
        match self {
            Self::Ext4 | Self::Btrfs => Errno::EDQUOT,
            Self::Xfs => Errno::ENOSPC,
        }
    }
}

pub(crate) struct Disk {
    pub(crate) kind: Kind,
    image: PathBuf,
    target: PathBuf,
    // Last: it is removed after the mount in it is gone.
    _directory: tempfile::TempDir,
}

impl Disk {
    /// 400 MiB on which limits of projects hold.
    pub(crate) fn enforcing(kind: Kind) -> Result<Self> {
        match kind {
            Kind::Ext4 => Self::new(kind, &["-q", "-O", "project,quota"], "prjquota"),
            Kind::Xfs => Self::new(kind, &["-q"], "pquota"),
            Kind::Btrfs => Self::new(kind, &["-q"], ""),
        }
    }

    pub(crate) fn new(kind: Kind, mkfs: &[&str], options: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let disk = Self {
            kind,
            image: directory.path().join("image"),
            target: directory.path().join("mnt"),
            _directory: directory,
        };
        File::create(&disk.image)?.set_len(400 * MIB)?;
        fs::create_dir(&disk.target)?;
        let program = format!("mkfs.{}", kind.name());
        output_of(
            command(program).args(mkfs).arg(&disk.image),
            Duration::from_secs(60),
        )?;
        disk.mount(options)?;
        Ok(disk)
    }

    pub(crate) fn remount(&self, options: &str) -> Result<()> {
        umount2(&self.target, MntFlags::empty()).context("unmounting")?;
        self.mount(options)
    }

    fn mount(&self, options: &str) -> Result<()> {
        let how = LoopOptions {
            access: LoopAccess::ReadWrite,
            cache: LoopCache::Single,
            block_bytes: 512,
        };
        let device = LoopDevice::attach_with(&self.image, &how).context("a loop device")?;
        let kind = Some(self.kind.name());
        mount(
            Some(device.path()),
            &self.target,
            kind,
            MsFlags::empty(),
            Some(options),
        )
        .with_context(|| format!("mounting {} with `{options}`", self.kind.name()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.target
    }

    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    pub(crate) fn root(&self) -> Result<File> {
        Ok(File::open(&self.target)?)
    }

    pub(crate) fn quota(&self) -> Result<Quota> {
        Ok(Quota::open(&self.target)?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A check that failed may still have files open; the guest ends soon anyway.
        umount2(&self.target, MntFlags::MNT_DETACH).ok();
    }
}
