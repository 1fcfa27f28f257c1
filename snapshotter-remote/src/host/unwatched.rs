//! Disks that nobody answered for: mounted before they were whole, and then daemon and fd-holder were gone both. Who has read
//! of one that was watched may have read zeros, and the kernel may have kept them; who has read of one that was served was told that it
//! fails, and will be for ever.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use disk::Digest;
use mounts::mountinfo;
use nix::sys::stat::makedev;
use snapshot_core::{Error, one_line};

use super::{
    blob,
    disks::{BLOBS, DISKS, METADATA, directories, kept},
    opens::{Opens, Reads},
    probe,
};
use crate::{
    error::Result,
    signature::{PublicKey, digest},
};

/// Where mounts of disks are.
const SNAPSHOTS: &str = "snapshots";

/// Whether there is a group of events, and whether there is a FUSE connection, of a daemon before this one.
#[derive(Debug, Clone, Copy)]
pub(super) struct TakenOver {
    pub(super) has_events: bool,
    pub(super) is_serving: bool,
}

/// Unmounts them: a container that starts gets a new mount, of which nothing is kept, and whose readers are answered. Those that run keep
/// theirs, so an operator is told. One that cannot be verified any more may be such a disk, and is unmounted as well.
///
/// # Errors
/// What keeps mounts from being read, or one from being unmounted.
pub(super) fn take_away(root: &Path, keys: &[PublicKey], taken: TakenOver) -> Result<()> {
    if taken.has_events && taken.is_serving {
        return Ok(());
    }
    let disks = root.join(DISKS);
    let snapshots = root.join(SNAPSHOTS);
    let served = served(root)?;
    let entries = mountinfo::read().map_err(Error::io("read", "/proc/self/mountinfo"))?;
    for entry in entries {
        let mount_point = PathBuf::from(&entry.mount_point);
        let device = makedev(entry.device.0.into(), entry.device.1.into());
        // Loop devices do not tell the disk; a number may be that of another's disk by now.
        if served.contains(&device) && mount_point.starts_with(&snapshots) {
            if !taken.is_serving {
                let path = mount_point.display();
                tracing::error!(
                    %path,
                    "fd-holder had ended while nobody served: containers that run on this disk are told of errors, start them anew"
                );
                probe::unmount(&mount_point)?;
            }
            continue;
        }
        if taken.has_events {
            continue;
        }
        let Some(chain_id) = disk_of(&disks, Path::new(&entry.source)) else {
            continue;
        };
        let why = match is_whole(root, chain_id, keys) {
            Ok(true) => continue,
            Ok(false) => "it is not whole".to_owned(),
            Err(error) => one_line(&error),
        };
        tracing::error!(
            %chain_id,
            why,
            "fd-holder had ended while nobody served: containers that run on this disk may have read zeros, start them anew"
        );
        probe::unmount(&mount_point)?;
    }
    Ok(())
}

/// The devices of all mounts whose readers are given their bytes.
fn served(root: &Path) -> Result<BTreeSet<u64>> {
    let blobs = root.join(BLOBS);
    let mut devices = BTreeSet::new();
    if blobs.is_dir() {
        for (directory, _) in directories(&blobs)? {
            devices.extend(Opens::read(&directory, false)?.devices(Reads::Served));
        }
    }
    Ok(devices)
}

/// The disk whose metadata is mounted.
fn disk_of(disks: &Path, source: &Path) -> Option<Digest> {
    let below = source.strip_prefix(disks).ok()?;
    let name = below.parent().filter(|_| below.ends_with(METADATA))?;
    digest(name.to_str()?)
}

/// Whether all that may be read of a disk is here.
fn is_whole(root: &Path, chain_id: Digest, keys: &[PublicKey]) -> Result<bool> {
    let directory = root.join(DISKS).join(chain_id.to_string());
    let Some((manifest, _)) = kept(&directory, chain_id, keys)? else {
        return Ok(false);
    };
    for device in &manifest.devices {
        let chunks = blob::look(&root.join(BLOBS), device.table)?;
        if chunks.is_none_or(|(all, here)| here < all) {
            return Ok(false);
        }
    }
    Ok(true)
}
