//! What is counted and what is enforced, by how a file system was made and mounted.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use sys::project_quota::{ProjectId, QuotaState};

use crate::{
    disk::{Disk, Kind, MIB},
    project::{Overlay, Project, bytes, write},
};

pub(crate) fn ext4_states() -> Result<()> {
    let disk = Disk::enforcing(Kind::Ext4)?;
    expect(&disk, QuotaState::Enforcing)?;
    disk.remount("")?;
    expect(&disk, QuotaState::Counting)?;
    nothing_is_limited(&disk)?;
    let plain = Disk::new(Kind::Ext4, &["-q"], "")?;
    expect(&plain, QuotaState::Off)?;
    refuses(&plain)
}

pub(crate) fn xfs_states() -> Result<()> {
    let disk = Disk::enforcing(Kind::Xfs)?;
    expect(&disk, QuotaState::Enforcing)?;
    disk.remount("pqnoenforce")?;
    expect(&disk, QuotaState::Counting)?;
    nothing_is_limited(&disk)?;
    let plain = Disk::new(Kind::Xfs, &["-q"], "")?;
    expect(&plain, QuotaState::Off)?;
    refuses(&plain)
}

fn expect(disk: &Disk, state: QuotaState) -> Result<()> {
    let found = disk.quota()?.state()?;
    ensure!(
        found == state,
        "{} is {found:?} and not {state:?}",
        disk.kind.name()
    );
    Ok(())
}

fn nothing_is_limited(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1010, &bytes(10 * MIB))?;
    let overlay = Overlay::of(disk, &project)?;
    write(&overlay.path().join("x"), 20).context("beyond a limit that does not hold")?;
    let used = project.usage()?;
    ensure!(used.bytes >= 20 * MIB, "not counted: {used:?}");
    Ok(())
}

fn refuses(disk: &Disk) -> Result<()> {
    let quota = disk.quota()?;
    ensure!(
        quota.get(ProjectId(1)).is_err(),
        "{:?}",
        quota.get(ProjectId(1))
    );
    ensure!(
        quota.set(ProjectId(1), &bytes(MIB)).is_err(),
        "a limit was taken"
    );
    ensure!(
        quota.next(ProjectId(0)).is_err(),
        "{:?}",
        quota.next(ProjectId(0))
    );
    File::open(disk.path())?;
    Ok(())
}
