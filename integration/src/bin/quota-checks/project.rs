//! A snapshot's directories in a project of their own, and writing into them until that fails.

use std::{
    fs::{self, File},
    io::{self, Write},
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use sys::project_quota::{Inherit, Limits, ProjectId, Quota, Usage, set_project};

use crate::disk::{Disk, MIB};

pub(crate) struct Project {
    pub(crate) id: ProjectId,
    pub(crate) directory: PathBuf,
    pub(crate) quota: Quota,
}

impl Project {
    /// `snapshots/ID` with `fs` and `work`, which inherit the id.
    pub(crate) fn new(disk: &Disk, id: u32, limits: &Limits) -> Result<Self> {
        let project = Self {
            id: ProjectId(id),
            directory: disk.path().join("snapshots").join(id.to_string()),
            quota: disk.quota()?,
        };
        fs::create_dir_all(&project.directory)?;
        let open = File::open(&project.directory)?;
        set_project(open, project.id, Inherit::Yes).context("setting the project")?;
        for name in ["fs", "work"] {
            fs::create_dir(project.directory.join(name))?;
        }
        project.limit(limits)?;
        Ok(project)
    }

    pub(crate) fn limit(&self, limits: &Limits) -> Result<()> {
        self.quota
            .set(self.id, limits)
            .with_context(|| format!("setting {limits:?}"))
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        self.quota.get(self.id).context("reading usage")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.join("fs")
    }
}

/// An overlay over a lower directory with `big` of 8 MiB, `note`, and a directory `d`.
pub(crate) struct Overlay {
    target: PathBuf,
}

impl Overlay {
    pub(crate) fn new(disk: &Disk, upper: &Path, work: &Path) -> Result<Self> {
        let (lower, target) = (disk.path().join("lower"), disk.path().join("merged"));
        fs::create_dir_all(lower.join("d"))?;
        fs::create_dir_all(&target)?;
        fs::write(lower.join("big"), vec![7; 8 << 20])?;
        fs::write(lower.join("note"), "hello")?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let kind = Some("overlay");
        mount(
            kind,
            &target,
            kind,
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("mounting overlay")?;
        Ok(Self { target })
    }

    pub(crate) fn of(disk: &Disk, project: &Project) -> Result<Self> {
        Self::new(disk, &project.upper(), &project.directory.join("work"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // A check that failed may still have files open; the guest ends soon anyway.
        umount2(&self.target, MntFlags::MNT_DETACH).ok();
    }
}

pub(crate) fn bytes(limit: u64) -> Limits {
    Limits {
        bytes_hard: NonZeroU64::new(limit),
        ..Limits::default()
    }
}

pub(crate) fn inodes(limit: u64) -> Limits {
    Limits {
        inodes_hard: NonZeroU64::new(limit),
        ..Limits::default()
    }
}

/// Writes that many MiB to a file, and to the disk.
pub(crate) fn write(path: &Path, mib: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..mib * 16 {
        file.write_all(&[7; 1 << 16])?;
    }
    file.sync_all()
}

/// Writes to a file until it fails with `full`, which must be before `mib`; gives its size.
pub(crate) fn fill(path: &Path, mib: u64, full: Errno) -> Result<u64> {
    refused(write(path, mib), full).with_context(|| format!("writing {}", path.display()))?;
    let size = fs::metadata(path)?.len();
    ensure!(
        size < mib * MIB,
        "all of {mib} MiB arrived and still it failed"
    );
    Ok(size)
}

/// Demands that something failed, and with this.
pub(crate) fn refused<T>(result: io::Result<T>, expected: Errno) -> Result<()> {
    let Err(error) = result else {
        bail!("it worked, and should have failed with {expected}");
    };
    let errno = error.raw_os_error().map(Errno::from_raw);
    ensure!(
        errno == Some(expected),
        "{error} ({errno:?}) and not {expected}"
    );
    Ok(())
}
