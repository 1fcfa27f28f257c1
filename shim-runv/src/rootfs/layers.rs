//! What makes two mounted root file systems the same: the layers of their overlays.
//!
//! A snapshotter's directory of a committed layer never changes; a path alone does not tell, for a
//! snapshotter that was emptied begins with the same paths anew, so inode and time of change belong to it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mounts::mountinfo::{self, Entry};

use crate::{Error, Result};

/// Version of what a disk is made of: raised when the same layers give another one.
const VERSION: u32 = 1;

/// A text that is equal for the same layers; none when what is mounted at `root` is more than layers.
pub(crate) fn identity(root: &Path) -> Result<Option<String>> {
    let root = fs::canonicalize(root).map_err(Error::on("resolve", root))?;
    let mounts = mountinfo::below(&root).map_err(Error::io("read /proc/self/mountinfo"))?;
    match mounts.as_slice() {
        [only] if only.fstype == "overlay" && only.path() == root => of_overlay(only),
        _ => Ok(None),
    }
}

fn of_overlay(mount: &Entry) -> Result<Option<String>> {
    let Some(lower) = directories(&mount.super_options, "lowerdir") else {
        return Ok(None);
    };
    for upper in directories(&mount.super_options, "upperdir")
        .into_iter()
        .flatten()
    {
        let mut entries = fs::read_dir(&upper).map_err(Error::on("list", &upper))?;
        if entries.next().is_some() {
            return Ok(None);
        }
    }
    let mut text = format!("runv {VERSION} disk {}", disk::FORMAT_VERSION);
    for path in lower {
        // Relative to what nobody knows any more, or a name with the mount options' own characters.
        let Ok(metadata) = fs::metadata(&path) else {
            return Ok(None);
        };
        if !path.is_absolute() {
            return Ok(None);
        }
        text.push_str(&format!(
            "\n{} {} {} {}.{}",
            path.display(),
            metadata.dev(),
            metadata.ino(),
            metadata.ctime(),
            metadata.ctime_nsec()
        ));
    }
    Ok(Some(text))
}

/// The directories that an option lists; none without it.
fn directories(options: &str, wanted: &str) -> Option<Vec<PathBuf>> {
    let value = options
        .split(',')
        .filter_map(|option| option.split_once('='))
        .find(|(name, _)| *name == wanted)?
        .1;
    Some(value.split(':').map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity_of(options: &str) -> Option<String> {
        let line = format!("40 31 0:37 / /nowhere rw - overlay overlay {options}\n");
        of_overlay(&mountinfo::parse(&line)[0]).unwrap()
    }

    #[test]
    fn layers_are_the_same_until_one_is_another_or_something_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["a", "b", "upper"] {
            fs::create_dir(at(name)).unwrap();
        }
        let options = format!(
            "rw,lowerdir={}:{},upperdir={},workdir=/w",
            at("a").display(),
            at("b").display(),
            at("upper").display()
        );
        let first = identity_of(&options).unwrap();
        assert_eq!(identity_of(&options).as_ref(), Some(&first));
        let view = options.split(",upperdir").next().unwrap();
        assert_eq!(identity_of(view).as_ref(), Some(&first));
        fs::remove_dir(at("b")).unwrap();
        fs::create_dir(at("other")).unwrap();
        fs::create_dir(at("b")).unwrap();
        assert_ne!(identity_of(&options).unwrap(), first);
        fs::write(at("upper").join("x"), "").unwrap();
        assert_eq!(identity_of(&options), None);
        assert_eq!(identity_of("rw,lowerdir=a:b"), None);
        assert_eq!(identity_of("rw"), None);
    }

    #[test]
    fn what_is_no_overlay_is_more_than_layers() {
        assert_eq!(identity(Path::new("/proc")).unwrap(), None);
    }
}
