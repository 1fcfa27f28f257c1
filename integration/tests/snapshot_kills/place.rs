//! Where the snapshots of a back end are, and what is left there in the end.

use std::{
    fs::{self, File},
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use integration::{
    disk::Disk,
    wait::{SOON, Sources, until},
};
use nix::{
    mount::{MntFlags, umount2},
    sys::statvfs::statvfs,
};
use sys::{
    btrfs::{self, QgroupId},
    project_quota::{ProjectId, Quota, Usage, project_of},
};

use crate::rules::BackEnd;

/// The ids that are the daemon's unless it is told others.
const FIRST_PROJECT: u32 = 0x4000_0000;
const LAST_PROJECT: u32 = 0x7FFF_FFFF;

const DISK_BYTES: u64 = 4 << 30;

#[derive(Debug)]
pub(crate) struct Place {
    back_end: BackEnd,
    disk: Option<Disk>,
}

impl Place {
    /// `filesystem` for a disk of its own.
    pub(crate) fn new(back_end: BackEnd, filesystem: Option<&str>) -> Result<Self> {
        let disk = filesystem.map(|kind| {
            let (mkfs, options): (&[&str], &str) = match kind {
                "btrfs" => (&["-q"], ""),
                "ext4" => (&["-q", "-O", "project,quota"], "prjquota"),
                _ => (&["-q"], "prjquota"),
            };
            Disk::sparse(kind, DISK_BYTES, mkfs, options)
        });
        let disk = disk.transpose()?;
        Ok(Self { back_end, disk })
    }

    /// The daemon's root, when it has to be here.
    pub(crate) fn root(&self) -> Option<PathBuf> {
        Some(self.disk.as_ref()?.path().join("root"))
    }

    /// Whether a limit that was being raised when the daemon was killed may be in force without being
    /// stored: an image does not shrink, and what is shown is what it has.
    pub(crate) fn may_have_grown(&self) -> bool {
        matches!(self.back_end, BackEnd::Image)
    }

    fn snapshots(&self, root: &Path) -> PathBuf {
        match self.back_end {
            BackEnd::Pool => root.join("pool/snapshots"),
            _ => root.join("snapshots"),
        }
    }

    /// Demands that the kernel limits a snapshot, which is counted by itself, to that.
    pub(crate) fn check_limit(&self, root: &Path, id: u64, limit: Option<u64>) -> Result<()> {
        let directory = self.snapshots(root).join(id.to_string());
        let separate = directory.join("rw");
        let in_force = match self.back_end {
            BackEnd::Btrfs => {
                let subvolume = btrfs::subvolume_of(File::open(&separate)?)?;
                let qgroup = QgroupId::of_subvolume(subvolume);
                let counted = btrfs::qgroup(File::open(root)?, qgroup)?;
                counted.context("it is not counted")?.limits.referenced
            }
            BackEnd::Prjquota | BackEnd::Pool => {
                let project = project_of(File::open(directory.join("fs"))?)?.id;
                Quota::open(&directory)?.get(project)?.limits.bytes_hard
            }
            // Without a limit it is as large as the host's memory.
            BackEnd::Tmpfs => {
                let about = statvfs(&separate)?;
                let bytes = about.blocks() * about.fragment_size();
                NonZeroU64::new(bytes).filter(|_| limit.is_some())
            }
            // An image that was to grow when the daemon was killed may have grown.
            BackEnd::Image => {
                let bytes = fs::metadata(directory.join("rw.img"))?.len();
                let least = limit.map(|limit| limit.min(bytes));
                least.and_then(NonZeroU64::new)
            }
            BackEnd::None => None,
        };
        let in_force = in_force.map(NonZeroU64::get);
        ensure!(
            in_force == limit,
            "number {id} is limited to {in_force:?} instead of {limit:?}"
        );
        Ok(())
    }

    /// Has the kernel go on with what it does behind its answers.
    pub(crate) fn settle(&self, root: &Path) -> Result<()> {
        match self.back_end {
            BackEnd::Btrfs => Ok(btrfs::sync(File::open(root)?)?),
            _ => Ok(()),
        }
    }

    /// Demands that nothing of the daemon's is left below its root, now that it has ended: no
    /// directory of a snapshot, no mount, no loop device, no account.
    pub(crate) fn check_nothing_is_left(&self, root: &Path) -> Result<()> {
        let snapshots = self.snapshots(root);
        let left = fs::read_dir(&snapshots)?.collect::<Result<Vec<_>, _>>()?;
        ensure!(left.is_empty(), "directories are left: {left:?}");
        match self.back_end {
            BackEnd::Btrfs => no_quota_groups(root)?,
            BackEnd::Prjquota => no_projects(root)?,
            BackEnd::Pool => {
                let pool = root.join("pool");
                no_projects(&pool)?;
                // It stays mounted when the daemon ends.
                umount2(&pool, MntFlags::empty()).context("unmounting the pool")?;
            }
            BackEnd::Image | BackEnd::Tmpfs | BackEnd::None => {}
        }
        until(
            "no mount and no loop device is left",
            SOON,
            Sources::none().mounts()?,
            || {
                let left = below(root)?;
                Ok(left.is_empty().then_some(()))
            },
        )
        .with_context(|| format!("{:?}", below(root)))
    }
}

/// Mounts below a directory, and files below it that loop devices show.
fn below(root: &Path) -> Result<Vec<String>> {
    let root = root.canonicalize()?;
    let root = root.to_str().context("its path is UTF-8")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<String> = points.map(str::to_owned).collect();
    for device in fs::read_dir("/sys/block")? {
        let file = device?.path().join("loop/backing_file");
        found.extend(fs::read_to_string(file).ok());
    }
    found.retain(|path| path.starts_with(root));
    Ok(found)
}

/// btrfs drops subvolumes behind their removal.
fn no_quota_groups(root: &Path) -> Result<()> {
    let open = File::open(root)?;
    let id = |level, number| QgroupId::new(level, number).context("it has 48 bits");
    let last = (1 << 48) - 1;
    let mut left = Vec::new();
    let what = "no quota group is left";
    until(what, SOON, Sources::none(), || {
        btrfs::sync(&open)?;
        left = btrfs::qgroups(&open, id(0, 256)?..=id(0, last)?)?;
        left.extend(btrfs::qgroups(&open, id(1, 0)?..=id(1, last)?)?);
        Ok(left.is_empty().then_some(()))
    })
    .with_context(|| format!("{left:?}"))
}

/// xfs gives back what it had set aside for files a little after they were deleted.
fn no_projects(root: &Path) -> Result<()> {
    let quota = Quota::open(root)?;
    let mut left = Vec::new();
    let what = "no project is left";
    until(what, SOON, Sources::none(), || {
        quota.sync()?;
        left.clear();
        let mut from = FIRST_PROJECT;
        while let Some((project, usage)) = quota.next(ProjectId(from))? {
            if project.0 > LAST_PROJECT {
                break;
            }
            if usage != Usage::default() {
                left.push((project, usage));
            }
            from = project.0 + 1;
        }
        Ok(left.is_empty().then_some(()))
    })
    .with_context(|| format!("{left:?}"))
}
