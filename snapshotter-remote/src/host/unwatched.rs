//! Disks that nobody answered for: mounted before they were whole, and then daemon and fd-holder were gone both. Who has read
//! of one may have read zeros, and the kernel may have kept them.

use std::path::Path;

use mounts::mountinfo;
use snapshot_core::Error;

use super::{
    disks::{DISKS, METADATA},
    probe, status,
};
use crate::{error::Result, signature::PublicKey};

/// Unmounts them: a container that starts gets a new mount, of which nothing is kept, and which is watched. Those that run keep
/// theirs, so an operator is told.
///
/// # Errors
/// What keeps mounts from being read, or one from being unmounted.
pub(super) fn take_away(root: &Path, keys: &[PublicKey]) -> Result<()> {
    if !root.join(DISKS).is_dir() {
        return Ok(());
    }
    let disks = status(root, keys)?.into_iter().filter_map(Result::ok);
    for disk in disks.filter(|disk| disk.is_mounted && disk.chunks.0 > disk.chunks.1) {
        let source = root
            .join(DISKS)
            .join(disk.chain_id.to_string())
            .join(METADATA);
        let source = source.display().to_string();
        tracing::error!(
            chain_id = %disk.chain_id,
            "fd-holder had ended while nobody served: containers that run on this disk may have read zeros, start them anew"
        );
        let entries = mountinfo::read().map_err(Error::io("read", "/proc/self/mountinfo"))?;
        for entry in entries.into_iter().filter(|entry| entry.source == source) {
            probe::unmount(Path::new(&entry.mount_point))?;
        }
    }
    Ok(())
}
