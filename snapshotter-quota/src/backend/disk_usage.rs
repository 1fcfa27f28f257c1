//! Counting by walking, for what no kernel counts; must not leave the tree or follow links.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use snapshot_core::{Error, Result, SnapshotId, Usage};

/// A walk is good for this many times as long as it took, so that walking never takes more than a
/// tenth of one processor for each snapshot.
const REST: u32 = 10;

/// Walks of a tree that is moved about meanwhile.
const ATTEMPTS_MAX: usize = 5;

/// What a tree holds, itself included: blocks allocated, and each inode once however many names it
/// has, as containerd counts. What goes away meanwhile is not counted.
pub(super) fn of(tree: &Path) -> Result<Usage> {
    let mut attempts = 1..ATTEMPTS_MAX;
    loop {
        match snapshot_core::disk_usage(tree) {
            // A directory above the one that was looked at is somewhere else now.
            Err(error) if error.kind() == ErrorKind::StaleNetworkFileHandle => {
                if attempts.next().is_none() {
                    return Err(Error::io("count", tree)(error));
                }
            }
            other => return other.map_err(Error::io("count", tree)),
        }
    }
}

/// The last walks of snapshots that can change.
#[derive(Debug, Default)]
pub(super) struct Walks(Mutex<BTreeMap<SnapshotId, Walk>>);

#[derive(Debug, Clone, Copy)]
struct Walk {
    usage: Usage,
    ended: Instant,
    took: Duration,
}

impl Walk {
    fn is_good(&self, now: Instant) -> bool {
        now.duration_since(self.ended) < self.took * REST
    }
}

impl Walks {
    /// What a snapshot's tree holds, or held a moment ago.
    pub(super) fn usage(&self, id: SnapshotId, tree: &Path) -> Result<Usage> {
        let last = self.lock().get(&id).copied();
        match last {
            Some(walk) if walk.is_good(Instant::now()) => Ok(walk.usage),
            _ => self.walk(id, tree),
        }
    }

    fn walk(&self, id: SnapshotId, tree: &Path) -> Result<Usage> {
        let began = Instant::now();
        let usage = of(tree)?;
        let ended = Instant::now();
        let walk = Walk {
            usage,
            ended,
            took: ended - began,
        };
        self.lock().insert(id, walk);
        Ok(usage)
    }

    /// The snapshot is closed or gone.
    pub(super) fn forget(&self, id: SnapshotId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SnapshotId, Walk>> {
        // Values are replaced whole, so a panic elsewhere leaves none half made.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd};

    use nix::{
        fcntl::{OFlag, openat},
        sys::stat::Mode,
    };

    use super::*;

    #[test]
    fn a_tree_is_counted_as_du_does() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("fs");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(tree.join("a/file"), tree.join("again")).unwrap();
        std::os::unix::fs::symlink("/", tree.join("link")).unwrap();
        fs::File::create(tree.join("sparse"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let usage = of(&tree).unwrap();
        let blocks = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            fs::symlink_metadata(path).unwrap().blocks() * 512
        };
        let paths = ["", "a", "a/b", "a/file", "link", "sparse"];
        let bytes = paths.iter().map(|path| blocks(&tree.join(path))).sum();
        assert_eq!(usage, Usage { bytes, inodes: 6 });
    }

    #[test]
    fn trees_deeper_than_a_path_can_be_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("fs");
        fs::create_dir(&root).unwrap();
        let mut at: OwnedFd = fs::File::open(&root).unwrap().into();
        let name = "x".repeat(100);
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
        }
        assert_eq!(of(&root).unwrap().inodes, 3001);
        // More than others delete.
        snapshot_core::delete_tree(&root).unwrap();
    }

    #[test]
    fn what_is_no_directory_is_an_error_and_a_link_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(of(&folder.path().join("missing")).is_err());
        std::os::unix::fs::symlink("/", folder.path().join("link")).unwrap();
        assert!(of(&folder.path().join("link")).is_err());
    }

    #[test]
    fn a_walk_is_good_for_ten_times_its_length() {
        let ended = Instant::now();
        let walk = Walk {
            usage: Usage::default(),
            ended,
            took: Duration::from_millis(20),
        };
        assert!(walk.is_good(ended + Duration::from_millis(199)));
        assert!(!walk.is_good(ended + Duration::from_millis(200)));
    }

    #[test]
    fn answers_come_from_the_last_walk_while_it_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let walks = Walks::default();
        let id = SnapshotId(7);
        let first = walks.usage(id, folder.path()).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        walks.lock().get_mut(&id).unwrap().took = Duration::from_secs(3600);
        assert_eq!(walks.usage(id, folder.path()).unwrap(), first);
        walks.forget(id);
        let second = walks.usage(id, folder.path()).unwrap();
        assert_eq!(second.inodes, first.inodes + 1);
    }
}
