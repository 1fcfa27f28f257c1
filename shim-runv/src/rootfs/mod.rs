//! A container's root file system as a disk: what containerd has mounted, packed as EROFS, and kept for
//! the next container of the same image.

mod cache;
mod layers;
mod pack;

use std::fs::File;
use std::path::{Path, PathBuf};

use disk::Digest;
use sha2::{Digest as _, Sha256};

use crate::home::Home;
use crate::{Error, Result};

/// A root file system has the limits of an image only, which are those of the crate that makes disks.
const UNLIMITED: u64 = u64::MAX;

/// The disk of the root file system that is mounted at `root`: from the cache, or made. One that is not
/// the image's alone, because something was written to it already, is made in `own`.
///
/// # Errors
/// What cannot be read, or cannot be on such a disk.
pub(crate) fn disk(root: &Path, home: &Home, own: &Path) -> Result<PathBuf> {
    match layers::identity(root)? {
        Some(identity) => {
            let key: [u8; 32] = Sha256::digest(identity.as_bytes()).into();
            cache::get(&home.layers(), key, |file| {
                pack::pack(root, Digest(key), file, UNLIMITED)
            })
        }
        None => copy(root, own, "root", UNLIMITED),
    }
}

/// A disk of any directory of at most `bytes_max`, made in `own` under that name.
///
/// # Errors
/// As [`disk`], and [`Error::Unsupported`] for a larger one.
pub(crate) fn copy(directory: &Path, own: &Path, name: &str, bytes_max: u64) -> Result<PathBuf> {
    let path = own.join(format!("{name}.erofs"));
    let file = File::create_new(&path).map_err(Error::on("create", &path))?;
    pack::pack(directory, Digest([0; 32]), file, bytes_max)?;
    Ok(path)
}
