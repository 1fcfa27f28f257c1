//! The kernel tells of limits by netlink.

use std::{
    fs::{self, File},
    io::ErrorKind,
    num::NonZeroU64,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use anyhow::{Context, Result, ensure};
use integration::wait::{Deadline, SOON};
use nix::{
    poll::{PollFd, PollFlags},
    sys::stat::{major, minor},
};
use sys::{
    project_quota::Limits,
    quota_events::{QuotaEvent, QuotaEvents, QuotaOwner, QuotaWarning},
};

use crate::{
    disk::{Disk, Kind, MIB},
    project::{Overlay, Project, fill, inodes, write},
};

pub(crate) fn events_tell_what_was_hit(disk: &Disk) -> Result<()> {
    let events = QuotaEvents::open().context("listening")?;
    let project = Project::new(disk, 1012, &inodes(20))?;
    let overlay = Overlay::of(disk, &project)?;
    let refused = (0..100).find_map(|n| File::create(overlay.path().join(format!("n{n}"))).err());
    refused.context("100 files could be made")?;
    expect(&events, disk, &project, QuotaWarning::InodesHardHit)?;
    drop(overlay);

    let limits = Limits {
        bytes_hard: NonZeroU64::new(20 * MIB),
        bytes_soft: NonZeroU64::new(5 * MIB),
        ..Limits::default()
    };
    let project = Project::new(disk, 1007, &limits)?;
    let overlay = Overlay::of(disk, &project)?;
    let path = overlay.path().join("x");
    write(&path, 10).context("between the limits")?;
    expect(&events, disk, &project, QuotaWarning::BytesSoftHit)?;
    fill(&path, 30, disk.kind.full())?;
    expect(&events, disk, &project, QuotaWarning::BytesHardHit)?;
    fs::remove_file(&path)?;
    if disk.kind == Kind::Ext4 {
        expect(&events, disk, &project, QuotaWarning::BytesBelowSoft)?;
    }
    Ok(())
}

/// Waits for this warning; others may come before it.
fn expect(
    events: &QuotaEvents,
    disk: &Disk,
    project: &Project,
    warning: QuotaWarning,
) -> Result<()> {
    let device = disk.root()?.metadata()?.dev();
    let wanted = QuotaEvent {
        device_major: u32::try_from(major(device))?,
        device_minor: u32::try_from(minor(device))?,
        owner: QuotaOwner::Project(project.id),
        warning,
    };
    let deadline = Deadline::after(SOON);
    let mut seen = Vec::new();
    loop {
        match events.next() {
            Ok(event) if event == wanted => return Ok(()),
            Ok(event) => seen.push(event),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
                ensure!(deadline.poll(&mut fds)?, "no {wanted:?}, but {seen:?}");
            }
            Err(error) => return Err(error).context("receiving events"),
        }
    }
}
