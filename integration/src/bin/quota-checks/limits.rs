//! Limits hold, move and are remembered.

use std::{
    fs::{self, File},
    io::Write,
    num::NonZeroU64,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use sys::project_quota::{Limits, ProjectId, Quota, Usage};

use crate::{
    disk::{Disk, Kind, MIB},
    project::{Overlay, Project, bytes, fill, inodes, refused, write},
};

pub(crate) fn bytes_are_limited_through_overlay(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 0x4000_0001, &bytes(30 * MIB))?;
    let overlay = Overlay::of(disk, &project)?;
    let about = statvfs(overlay.path())?;
    let size = about.blocks() * about.fragment_size();
    ensure!(size == 30 * MIB, "df says {size} bytes");
    // As root with all capabilities: overlay drops CAP_SYS_RESOURCE.
    let written = fill(&overlay.path().join("x"), 60, disk.kind.full())?;
    ensure!(written > 25 * MIB, "only {written} bytes could be written");
    let used = project.usage()?;
    ensure!(
        used.bytes <= 30 * MIB && used.bytes >= written,
        "{used:?} after {written}"
    );
    ensure!(used.limits == bytes(30 * MIB), "{used:?}");

    // Nothing below can be deleted now: the whiteout, or its directory's copy, needs a block.
    fs::remove_file(overlay.path().join("x"))?;
    fs::remove_file(overlay.path().join("big"))?;
    write(&overlay.path().join("y"), 10).context("writing after deleting")
}

pub(crate) fn inodes_are_limited_through_overlay(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1001, &inodes(200))?;
    let overlay = Overlay::of(disk, &project)?;
    let mut made = 0;
    let refusal = loop {
        ensure!(made < 1000, "1000 files could be made");
        let file = File::create(overlay.path().join(format!("n{made}")));
        if file.is_err() {
            break file;
        }
        made += 1;
    };
    refused(refusal, disk.kind.full())?;
    ensure!((150..=200).contains(&made), "{made} files could be made");
    let used = project.usage()?;
    ensure!(
        used.inodes <= 200 && used.inodes > made,
        "{used:?} after {made}"
    );
    ensure!(used.limits == inodes(200), "{used:?}");
    Ok(())
}

pub(crate) fn limit_changes_while_files_are_open(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1002, &bytes(10 * MIB))?;
    let overlay = Overlay::of(disk, &project)?;
    let path = overlay.path().join("x");
    let mut file = File::create(&path)?;
    let mut more = |mib: usize| {
        file.write_all(&vec![7; mib << 20])
            .and_then(|()| file.sync_all())
    };
    more(8)?;
    refused(more(8), disk.kind.full()).context("at the first limit")?;
    project.limit(&bytes(40 * MIB))?;
    more(8).context("after growing")?;
    project.limit(&bytes(5 * MIB))?;
    // Another file: xfs has already counted what it keeps ready at the end of an open one.
    let other = overlay.path().join("other");
    refused(write(&other, 1), disk.kind.full()).context("after shrinking")?;
    let size = statvfs(overlay.path())?;
    ensure!(
        size.blocks_available() == 0,
        "df has {} blocks",
        size.blocks_available()
    );
    fs::remove_file(&path).context("deleting while over the limit")?;
    project.limit(&Limits::default())?;
    more(50).context("without a limit")?;
    ensure!(
        project.usage()?.limits == Limits::default(),
        "{:?}",
        project.usage()?
    );
    Ok(())
}

pub(crate) fn limits_are_rounded_up_and_never_wrap(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1003, &Limits::default())?;
    // xfs counts in its blocks.
    let unit = match disk.kind {
        Kind::Ext4 | Kind::Btrfs => 1024,
        Kind::Xfs => 4096,
    };
    for limit in [
        1,
        1023,
        1024,
        1025,
        4097,
        30 * MIB,
        1 << 62,
        1 << 63,
        u64::MAX,
    ] {
        project.limit(&Limits {
            bytes_hard: NonZeroU64::new(limit),
            inodes_hard: NonZeroU64::new(limit),
            ..Limits::default()
        })?;
        let limits = project.usage()?.limits;
        let back = limits.bytes_hard.map_or(0, NonZeroU64::get);
        let most = (1 << 63) - (1 << 16);
        let expected = limit.min(most).div_ceil(unit) * unit;
        ensure!(back == expected, "{limit} became {back} and not {expected}");
        let back = limits.inodes_hard.map_or(0, NonZeroU64::get);
        ensure!(
            back == limit.min((1 << 63) - 1),
            "{limit} inodes became {back}"
        );
    }
    write(&project.upper().join("x"), 1).context("below the largest limit")
}

pub(crate) fn deleted_open_file_is_counted(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1004, &bytes(30 * MIB))?;
    let overlay = Overlay::of(disk, &project)?;
    let before = project.usage()?;
    let path = overlay.path().join("hidden");
    let mut file = File::create(&path)?;
    fs::remove_file(&path)?;
    file.write_all(&vec![7; 8 << 20])?;
    file.sync_all()?;
    let hidden = project.usage()?;
    ensure!(
        hidden.bytes >= before.bytes + 8 * MIB,
        "{before:?}, then {hidden:?}"
    );
    drop(file);
    Ok(())
}

pub(crate) fn projects_are_found_in_order(disk: &Disk) -> Result<()> {
    let quota = disk.quota()?;
    ensure!(
        quota.get(ProjectId(77))? == Usage::default(),
        "{:?}",
        quota.get(ProjectId(77))
    );
    let ids = [5, 1000, 0x4000_0000, 0x7fff_ffff, u32::MAX - 1];
    for id in ids {
        quota
            .set(ProjectId(id), &bytes(MIB))
            .with_context(|| format!("project {id}"))?;
    }
    let user = Project::new(disk, 600, &Limits::default())?;
    quota.sync()?;
    let found = all(&quota)?;
    ensure!(
        found == [5, 600, 1000, 0x4000_0000, 0x7fff_ffff, u32::MAX - 1],
        "{found:?}"
    );
    ensure!(
        quota.next(ProjectId(u32::MAX))?.is_none(),
        "no id can be there"
    );
    let (id, usage) = quota.next(ProjectId(6))?.context("600 has usage")?;
    ensure!(
        (id, usage.limits) == (user.id, Limits::default()),
        "{id:?} {usage:?}"
    );
    ensure!(usage.inodes == 3, "its directory, fs and work: {usage:?}");

    for id in ids {
        quota.set(ProjectId(id), &Limits::default())?;
    }
    fs::remove_dir_all(&user.directory)?;
    // Inodes that are gone are given back in the background.
    let start = std::time::Instant::now();
    loop {
        nix::unistd::syncfs(disk.root()?)?;
        let left = all(&quota)?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed().as_secs() < 60, "{left:?} are left");
    }
}

/// Every id but 0.
fn all(quota: &Quota) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut from = ProjectId(1);
    while let Some((id, _)) = quota.next(from)? {
        found.push(id.0);
        from = ProjectId(id.0 + 1);
    }
    Ok(found)
}

pub(crate) fn limits_outlive_a_remount(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1005, &bytes(10 * MIB))?;
    write(&project.upper().join("x"), 4)?;
    let before = project.usage()?;
    drop(project);
    disk.remount(match disk.kind {
        Kind::Ext4 | Kind::Btrfs => "prjquota",
        Kind::Xfs => "pquota",
    })?;
    let after = disk.quota()?.get(ProjectId(1005))?;
    ensure!(after == before, "{before:?} and now {after:?}");
    let upper = disk.path().join("snapshots/1005/fs");
    let overlay = Overlay::new(disk, &upper, &upper.with_file_name("work"))?;
    fill(&overlay.path().join("y"), 20, disk.kind.full()).map(drop)
}

/// Without overlay ext4 lets pass who has CAP_SYS_RESOURCE; xfs nobody.
pub(crate) fn directory_without_overlay(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1006, &bytes(10 * MIB))?;
    let path: &Path = &project.upper().join("x");
    match disk.kind {
        Kind::Ext4 | Kind::Btrfs => write(path, 30).context("with CAP_SYS_RESOURCE"),
        Kind::Xfs => fill(path, 30, disk.kind.full()).map(drop),
    }
}
