//! Disks that nobody answered for: mounted before they were whole, and then daemon and fd-holder were gone both. Who has read
//! of one that was watched may have read zeros, and the kernel may have kept them; who has read of one that was served was told that it
//! fails, and will be for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use disk::Digest;
use mounts::mountinfo;
use nix::sys::stat::makedev;
use snapshot_core::{Error, one_line};

use super::{
    blob, detach,
    disks::{BLOBS, DISKS, METADATA, directories, kept},
    files,
    opens::{Opens, Reads},
};
use crate::{
    error::Result,
    signature::{self, PublicKey, digest},
};

/// Devices, by blob.
type Served = BTreeMap<[u8; 32], BTreeSet<u64>>;

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
        if mount_point.starts_with(&snapshots)
            && is_served(&disks, &served, (&entry.source, device))
        {
            if !taken.is_serving {
                let path = mount_point.display();
                tracing::error!(
                    %path,
                    "fd-holder had ended while nobody served: containers that run on this disk are told of errors, start them anew"
                );
                detach::detach(&mount_point)?;
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
        detach::detach(&mount_point)?;
    }
    Ok(())
}

/// Of each blob the devices of those mounts whose readers are given their bytes.
fn served(root: &Path) -> Result<Served> {
    let blobs = root.join(BLOBS);
    let mut served = Served::new();
    if blobs.is_dir() {
        for (directory, name) in directories(&blobs)? {
            let opens = Opens::read(&directory, false)?;
            served.insert(name.0, opens.devices(Reads::Served).collect());
        }
    }
    Ok(served)
}

/// Whether readers of what is mounted are given their bytes. The number of a disk whose end nobody saw is another's by now, which then has
/// not all its blobs served by it; of a loop device, or without a manifest, that is not known.
fn is_served(disks: &Path, served: &Served, (source, device): (&str, u64)) -> bool {
    let manifest = disk_of(disks, Path::new(source)).and_then(|chain_id| {
        let path = disks.join(chain_id.to_string()).join("manifest");
        let bytes = files::read(&path, signature::BYTES_MAX).ok()??;
        signature::open_unverified(&bytes, chain_id).ok()
    });
    let by_number = || served.values().any(|devices| devices.contains(&device));
    manifest.map_or_else(by_number, |manifest| {
        let has = |blob: &[u8; 32]| served.get(blob).is_some_and(|of| of.contains(&device));
        let mut blobs = manifest.devices.iter().map(|device_of| device_of.table);
        !manifest.devices.is_empty() && blobs.all(|blob| has(&blob))
    })
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
