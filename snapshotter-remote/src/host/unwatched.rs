//! Disks that nobody answered for: mounted before they were whole, and then daemon and fd-holder were gone both. Who has read
//! of one may have read zeros, and the kernel may have kept them.

use std::path::Path;

use disk::Digest;
use mounts::mountinfo;
use snapshot_core::{Error, one_line};

use super::{
    blob,
    disks::{BLOBS, DISKS, METADATA, kept},
    probe,
};
use crate::{
    error::Result,
    signature::{PublicKey, digest},
};

/// Unmounts them: a container that starts gets a new mount, of which nothing is kept, and which is watched. Those that run keep
/// theirs, so an operator is told. One that cannot be verified any more may be such a disk, and is unmounted as well.
///
/// # Errors
/// What keeps mounts from being read, or one from being unmounted.
pub(super) fn take_away(root: &Path, keys: &[PublicKey]) -> Result<()> {
    let disks = root.join(DISKS);
    let entries = mountinfo::read().map_err(Error::io("read", "/proc/self/mountinfo"))?;
    for entry in entries {
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
        probe::unmount(Path::new(&entry.mount_point))?;
    }
    Ok(())
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
