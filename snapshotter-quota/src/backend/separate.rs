//! What images and tmpfs have in common: a file system for one snapshot, out of which a layer is
//! copied when it is committed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use snapshot_core::{Error, Result, Usage};

use super::{Held, Record, directories, disk_usage, mounted, tree_copy};
use crate::limit::{Limit, Mode};

/// Refuses what no file system of a snapshot's own can do.
pub(super) fn check(limit: &Limit, what: &str) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::Invalid(format!(
            "{what} cannot {why}: use the back end prjquota or pool"
        )))
    };
    if limit.group.is_some() {
        return refuse("share its limit with other snapshots");
    }
    if limit.mode == Mode::Hard && limit.soft_bytes.is_some() {
        return refuse("have a soft limit");
    }
    Ok(())
}

/// What attaching says of a snapshot whose layer was moved out when the daemon ended.
pub(super) fn interrupted(held: &Held<'_>) -> Error {
    Error::Precondition(format!(
        "snapshot {held} was being committed when the daemon ended, and nothing can be written \
         any more: commit it again, or remove it"
    ))
}

/// The image of a snapshot that is in one.
pub(super) fn image(directory: &Path) -> PathBuf {
    directory.join("rw.img")
}

/// Where a layer is until it is complete.
fn building(held: &Held<'_>) -> PathBuf {
    held.directory.join("fs.new")
}

/// Makes a layer of what is mounted, and says what it holds. The snapshot is as it was, and can be
/// written and copied again. `is_whole` is asked before the copy becomes the layer.
pub(super) fn copy_out(held: &Held<'_>, is_whole: impl FnOnce() -> Result<()>) -> Result<Usage> {
    drop_copy(held)?;
    let (building, layer) = (building(held), Record::Plain.upper(held.directory));
    let copied = copy(held, &building).and_then(|usage| {
        is_whole()?;
        fs::rename(&building, &layer).map_err(Error::io("rename", &building))?;
        // The original is about to go, so the copy must be on the disk, by its name.
        let open = directories::open(&layer)?;
        nix::unistd::syncfs(&open).map_err(|errno| Error::io("sync", &layer)(errno.into()))?;
        Ok(usage)
    });
    if copied.is_err() {
        log(held, drop_copy(held));
    }
    copied
}

fn copy(held: &Held<'_>, building: &Path) -> Result<Usage> {
    directories::make_one(building, 0o700)?;
    tree_copy::copy(&held.record.upper(held.directory), building)?;
    disk_usage::of(building)
}

/// What could not be taken away costs room on the disk, and nothing else.
pub(super) fn log(held: &Held<'_>, outcome: Result<()>) {
    if let Err(error) = outcome {
        let error = error.in_one_line();
        tracing::warn!(
            snapshot = %held,
            error,
            "what an interrupted commit made is still there"
        );
    }
}

/// Takes the copy away: the original is there.
pub(super) fn drop_copy(held: &Held<'_>) -> Result<()> {
    for stale in [building(held), Record::Plain.upper(held.directory)] {
        snapshot_core::delete_tree(&stale).map_err(Error::io("remove", &stale))?;
    }
    Ok(())
}

/// Whether there is something of the original.
pub(super) fn is_left(directory: &Path) -> bool {
    let is_there = |path: PathBuf| fs::symlink_metadata(path).is_ok();
    is_there(image(directory)) || is_there(mounted::place(directory))
}

/// Takes the original away: the layer is complete.
pub(super) fn clear(directory: &Path) -> Result<()> {
    let gone = |outcome: io::Result<()>, path: &Path| match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("remove", path)),
    };
    // First, so that nobody mounts it again.
    let image = image(directory);
    gone(fs::remove_file(&image), &image)?;
    let place = mounted::place(directory);
    if place.exists() {
        mounted::unmount(directory)?;
    }
    gone(fs::remove_dir(&place), &place)
}
