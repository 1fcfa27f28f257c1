//! Takes a tree of mounts away; must not remove files or directories.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::{Error, Result};
use crate::mountinfo::{self, Entry};

/// Rounds of reading mountinfo and unmounting: a covered mount shows up when its cover is gone.
const ROUNDS_MAX: usize = 16;

/// Unmounts everything at and below a path, the deepest first; what is busy is detached.
///
/// Nothing mounted there, or no such path, is success. Symbolic links in the path are resolved but
/// for the last component, which may be the mount of a dead server that cannot be looked at.
///
/// # Errors
/// [`Error::Unmount`] with the first mount that stays.
pub fn unmount_tree(path: &Path) -> Result<()> {
    let failed = |source: io::Error| Error::Unmount {
        path: path.to_owned(),
        source,
    };
    let Some(path) = listed_path(path).map_err(failed)? else {
        return Ok(());
    };
    let mut refused = None;
    for _ in 0..ROUNDS_MAX {
        let mounts = deepest_first(mountinfo::below(&path).map_err(failed)?);
        if mounts.is_empty() {
            return Ok(());
        }
        refused = None;
        let mut progress = false;
        for mount in mounts {
            match unmount(&mount.path()) {
                Ok(Was::Mounted) => progress = true,
                Ok(Was::Gone) => {}
                Err(errno) => {
                    refused.get_or_insert((mount.path(), errno));
                }
            }
        }
        if !progress {
            break;
        }
    }
    let (path, errno) = refused.unwrap_or((path, Errno::EBUSY));
    Err(Error::Unmount {
        path,
        source: errno.into(),
    })
}

/// The path as mountinfo lists it; none when its folder does not exist.
fn listed_path(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = std::path::absolute(path)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Some(path));
    };
    match folder.canonicalize() {
        Ok(folder) => Ok(Some(folder.join(name))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Orders mounts so that each comes before the one it is on.
fn deepest_first(mut mounts: Vec<Entry>) -> Vec<Entry> {
    let parents: BTreeMap<u32, u32> = mounts
        .iter()
        .map(|entry| (entry.id, entry.parent))
        .collect();
    let depth = |entry: &Entry| {
        let chain = std::iter::successors(Some(entry.id), |id| parents.get(id).copied());
        // A table that changed while it was read could hold a ring.
        chain.take(parents.len() + 1).count()
    };
    mounts.sort_by_cached_key(|entry| std::cmp::Reverse(depth(entry)));
    mounts
}

/// What unmounting found.
enum Was {
    Mounted,
    Gone,
}

fn unmount(path: &Path) -> nix::Result<Was> {
    let flags = MntFlags::UMOUNT_NOFOLLOW;
    let result = match umount2(path, flags) {
        Err(Errno::EBUSY) => umount2(path, flags | MntFlags::MNT_DETACH),
        // No mount point any more, or a kernel before 2.6.34 that does not know the flag.
        Err(Errno::EINVAL) => umount2(path, MntFlags::MNT_DETACH),
        other => other,
    };
    match result {
        Ok(()) => Ok(Was::Mounted),
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(Was::Gone),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::namespace::{self, Scratch, mount};

    #[test]
    fn tree_goes_whatever_is_stacked_busy_or_strangely_named() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let tree = scratch.directory("tree");
            let tmpfs = mount(Path::new("none"), "tmpfs", "", &[]);
            let at = |below: &str| {
                let path = scratch.directory(&format!("tree/{below}"));
                crate::apply_host(&tmpfs, &path).unwrap();
                path
            };
            at("");
            at("");
            at("a");
            at("a/b c\n\\d");
            at("a");
            let busy = at("e");
            let file = scratch.file("tree/e/open", "");
            let held = namespace::open(&file);
            // One that is covered by its own parent's cover.
            at("");
            let neighbour = scratch.directory("tree-neighbour");
            crate::apply_host(&tmpfs, &neighbour).unwrap();

            unmount_tree(&tree).unwrap();
            assert!(mountinfo::below(&tree).unwrap().is_empty());
            assert_eq!(mountinfo::below(&neighbour).unwrap().len(), 1);
            assert!(nix::sys::stat::fstat(held.as_fd()).is_ok());
            drop(busy);
            unmount_tree(&tree).unwrap();
            unmount_tree(&scratch.path("no/such/path")).unwrap();
        });
    }

    #[test]
    fn links_lead_to_the_tree_but_the_last_is_not_followed() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let tree = scratch.directory("real/tree");
            let tmpfs = mount(Path::new("none"), "tmpfs", "", &[]);
            crate::apply_host(&tmpfs, &tree).unwrap();
            scratch.link("link", "real");
            scratch.link("last", "real/tree");
            unmount_tree(&scratch.path("last")).unwrap();
            assert_eq!(mountinfo::below(&tree).unwrap().len(), 1);
            unmount_tree(&scratch.path("link/tree")).unwrap();
            assert!(mountinfo::below(&tree).unwrap().is_empty());
        });
    }

    #[test]
    fn each_mount_comes_before_the_one_it_is_on() {
        let entry = |id: u32, parent: u32| {
            let line = format!("{id} {parent} 0:1 / /m rw - tmpfs none rw");
            mountinfo::parse(&line).remove(0)
        };
        let order = |entries: &[(u32, u32)]| {
            let entries = entries.iter().map(|(id, parent)| entry(*id, *parent));
            let sorted = deepest_first(entries.collect());
            sorted.iter().map(|entry| entry.id).collect::<Vec<_>>()
        };
        assert_eq!(order(&[(1, 0), (2, 1), (3, 2)]), [3, 2, 1]);
        // Numbers are used again, so a later mount may have a lower one.
        assert_eq!(order(&[(9, 0), (2, 9), (5, 2), (3, 9)]), [5, 2, 3, 9]);
        assert_eq!(order(&[(1, 2), (2, 1)]).len(), 2, "a ring ends");
    }
}
