//! Disks of which nothing goes from the cache: an empty file `ROOT/pins/CHAINID` for each.

use std::{collections::BTreeSet, fs, io, path::Path};

use disk::Digest;
use snapshot_core::{Error, Result};

use super::{disks::directories, files};

/// Where they are, below the root.
const PINS: &str = "pins";

/// Pins a disk: whether it was not before.
///
/// # Errors
/// What keeps it from being written down; a root that is not there.
pub fn pin(root: &Path, chain_id: Digest) -> Result<bool> {
    fs::metadata(root).map_err(Error::io("look for the root", root))?;
    let directory = root.join(PINS);
    files::make_directory(&directory)?;
    let path = directory.join(chain_id.to_string());
    let is_new = !path.exists();
    files::place(&path, b"")?;
    files::sync(root)?;
    Ok(is_new)
}

/// Lets go of it: whether it was pinned.
///
/// # Errors
/// What keeps that from being written down.
pub fn unpin(root: &Path, chain_id: Digest) -> Result<bool> {
    fs::metadata(root).map_err(Error::io("look for the root", root))?;
    let directory = root.join(PINS);
    let path = directory.join(chain_id.to_string());
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => {
            removed.map_err(Error::io("delete", &path))?;
            files::sync(&directory)?;
            Ok(true)
        }
    }
}

/// All that are.
///
/// # Errors
/// What keeps them from being listed.
pub(super) fn pinned(root: &Path) -> Result<BTreeSet<Digest>> {
    let directory = root.join(PINS);
    if !fs::exists(&directory).map_err(Error::io("look at", &directory))? {
        return Ok(BTreeSet::new());
    }
    let found = directories(&directory)?.into_iter();
    Ok(found.map(|(_, chain_id)| chain_id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pinned_is_until_it_is_let_go() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        let all = || pinned(root.path()).unwrap().into_iter().collect::<Vec<_>>();
        assert!(all().is_empty());
        assert!(!unpin(root.path(), one).unwrap());
        assert!(pin(root.path(), one).unwrap() && pin(root.path(), other).unwrap());
        assert!(!pin(root.path(), one).unwrap());
        assert_eq!(all(), [one, other]);
        assert!(unpin(root.path(), one).unwrap() && !unpin(root.path(), one).unwrap());
        assert_eq!(all(), [other]);
        let missing = root.path().join("missing");
        let error = pin(&missing, one).unwrap_err().in_one_line();
        assert!(error.contains("look for the root"), "{error}");
    }
}
