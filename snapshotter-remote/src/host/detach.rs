//! A disk is unmounted, and it is found out whether the kernel has it no more: an overlay may have it still.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use snapshot_core::{Error, Result};

use super::{attach, probe};

/// Takes what is mounted at a directory away: the device number of the disk that was there, if it is gone.
///
/// # Errors
/// What keeps it from being unmounted.
pub(super) fn detach(target: &Path) -> Result<Option<u64>> {
    let failed = || Error::io("look at", target);
    let about = match fs::metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        about => about.map_err(failed())?,
    };
    let witness = match attach::is_mounted(target)? {
        true => watch(target).ok(),
        false => None,
    };
    probe::unmount(target)?;
    // Without a witness it counts as there.
    let is_gone = witness.is_some_and(|witness| saw_its_end(&witness));
    Ok(is_gone.then(|| about.dev()))
}

/// The kernel tells who watches a file when its whole file system goes, in the call that takes the last of it away.
fn watch(target: &Path) -> nix::Result<Inotify> {
    let witness = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    witness.add_watch(target, AddWatchFlags::IN_DELETE_SELF)?;
    Ok(witness)
}

fn saw_its_end(witness: &Inotify) -> bool {
    let events = witness.read_events().unwrap_or_default();
    let mut events = events.iter();
    events.any(|event| event.mask.contains(AddWatchFlags::IN_UNMOUNT))
}
