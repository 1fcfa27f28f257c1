//! An image, its device and what is in it become larger while it is mounted.

use std::fs::OpenOptions;

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use sys::{
    LoopDevice,
    filesystem::{grow_ext4, grow_xfs},
};

use crate::{
    disk::{Disk, Kind, MIB},
    project::{Overlay, Project, bytes, fill},
};

pub(crate) fn mounted_file_system_grows(disk: &Disk) -> Result<()> {
    let project = Project::new(disk, 1011, &bytes(10 * MIB))?;
    let overlay = Overlay::of(disk, &project)?;
    let size = || -> Result<u64> {
        let about = statvfs(disk.path())?;
        Ok(about.blocks() * about.fragment_size())
    };
    let before = size()?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk.image())?;
    file.set_len(800 * MIB)?;
    let device = LoopDevice::of_file(&file)?.context("the device of the image")?;
    device.take_file_size()?;
    match disk.kind {
        Kind::Ext4 | Kind::Btrfs => grow_ext4(disk.root()?, 800 * MIB)?,
        Kind::Xfs => grow_xfs(disk.root()?, 800 * MIB)?,
    }
    let after = size()?;
    ensure!(after > before + 300 * MIB, "{before} bytes became {after}");
    fill(&overlay.path().join("x"), 20, disk.kind.full()).map(drop)
}
