//! btrfs on kernels with simple quota (6.7) and on those with classic quota only.

use std::{ffi::OsStr, fs::File, num::NonZeroU64};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use sys::{
    Kernel,
    btrfs::{
        QgroupId, QgroupLimits, QuotaKind, QuotaMode, create_subvolume, enable_quota, qgroup,
        quota_mode, set_qgroup_limits, subvolume_of, sync,
    },
};

use crate::{
    disk::{Disk, Kind, MIB},
    project::{fill, refused, write},
};

pub(crate) fn btrfs_limits() -> Result<()> {
    let disk = Disk::enforcing(Kind::Btrfs)?;
    let root = disk.root()?;
    let off = quota_mode(&root)?;
    ensure!(off == QuotaMode::Off, "{off:?}");
    if Kernel::running()?.at_least(6, 7) {
        enable_quota(&root, QuotaKind::Simple)?;
        let mode = quota_mode(&root)?;
        ensure!(mode == QuotaMode::Simple, "{mode:?}");
    } else {
        let simple = enable_quota(&root, QuotaKind::Simple);
        refused(simple, Errno::EINVAL).context("simple quota")?;
        enable_quota(&root, QuotaKind::Classic)?;
        let mode = quota_mode(&root)?;
        ensure!(
            [QuotaMode::Classic, QuotaMode::ClassicStale].contains(&mode),
            "{mode:?}"
        );
    }
    create_subvolume(&root, OsStr::new("one"))?;
    let directory = disk.path().join("one");
    let id = QgroupId::of_subvolume(subvolume_of(File::open(&directory)?)?);
    let limits = QgroupLimits {
        referenced: NonZeroU64::new(10 * MIB),
        exclusive: None,
    };
    set_qgroup_limits(&root, id, limits)?;
    write(&directory.join("a"), 4)?;
    fill(&directory.join("b"), 20, Errno::EDQUOT)?;
    sync(&root)?;
    let used = qgroup(&root, id)?.context("the subvolume has a group")?;
    ensure!(used.limits == limits, "{used:?}");
    ensure!((4 * MIB..=10 * MIB).contains(&used.referenced), "{used:?}");
    Ok(())
}
