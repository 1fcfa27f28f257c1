//! Whether the file system in an image has kept what was written to it. An image is a hole on the
//! host's disk: when that is full or fails, what a container was told is written is lost afterwards.
//! Must not decide what becomes of the snapshot.

use std::{
    fs::{self, File},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::{
        stat::{major, minor, stat},
        statvfs::{FsFlags, statvfs},
    },
};
use snapshot_core::{Error, Result};

use super::{Held, mounted};

/// Beside the image, once it is known: the kernel tells of what was lost a single time.
const MARK: &str = "lost-writes";

/// Brings everything to the host's disk, and says what was lost on the way.
pub(super) fn sync(held: &Held<'_>) -> Result<()> {
    let place = mounted::place(held.directory);
    // From kernel 5.8 on this tells of files that could not be written, too.
    let synced = File::open(&place).and_then(|open| Ok(nix::unistd::syncfs(&open)?));
    let lost = match synced {
        Ok(()) => known(held)?,
        Err(error) => Some(error.to_string()),
    };
    let Some(why) = lost else { return Ok(()) };
    if let Err(error) = File::create(held.directory.join(MARK)) {
        // There may be no room for it. Most file systems remember, too.
        tracing::warn!(snapshot = %held, %error, "lost writes could not be noted");
    }
    Err(Error::DataLoss(format!(
        "the disk image of snapshot {held} lost writes because the host's disk was full or \
         failing ({why}): its contents are not what was written. Make room on the host's disk, \
         remove the snapshot and make it again"
    )))
}

/// What was lost, as far as that was noticed; a few system calls.
pub(super) fn known(held: &Held<'_>) -> Result<Option<String>> {
    let path = held.directory.join(MARK);
    if path.try_exists().map_err(Error::io("look for", &path))? {
        return Ok(Some("it was noticed before".to_owned()));
    }
    if !mounted::is_mounted(held.directory)? {
        return Ok(None);
    }
    let place = mounted::place(held.directory);
    let device = match stat(&place) {
        Ok(about) => about.st_dev,
        Err(errno @ Errno::EIO) => return Ok(Some(errno.desc().to_owned())),
        Err(errno) => return Err(Error::io("look at", place)(errno.into())),
    };
    let about = statvfs(&place).map_err(|errno| Error::io("measure", place)(errno.into()))?;
    if about.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(Some("its file system has become read-only".to_owned()));
    }
    // From kernel 6.12 on, ext4 that has seen errors does not say that it is read-only.
    let errors = errors_of_ext4(device);
    Ok(errors.map(|count| format!("its file system has seen {count} errors")))
}

/// `None` without any, and where nothing counts them: on xfs, or without sysfs.
fn errors_of_ext4(device: u64) -> Option<u64> {
    let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let device = fs::read_link(link).ok()?;
    let count = Path::new("/sys/fs/ext4")
        .join(device.file_name()?)
        .join("errors_count");
    let count = fs::read_to_string(count).ok()?.trim().parse().ok()?;
    (count > 0).then_some(count)
}
