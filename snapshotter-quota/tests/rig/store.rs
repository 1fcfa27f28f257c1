//! Snapshots as the core keeps them: a directory under another name until it is filled, and under a
//! third while it goes.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use snapshot_core::{Key, Result, SnapshotId, Usage};
use snapshotter_quota::{
    backend::{Backend, Charge, Closed, Held, Kept, Left, Record, Report},
    limit::{Group, Inodes, Limit, Mode, Size},
};

use super::overlay::Overlay;

/// Back ends only tell it.
pub(crate) static KEY: LazyLock<Key> = LazyLock::new(|| Key::new("default/7/web").unwrap());

/// A root with a back end.
#[derive(Debug)]
pub(crate) struct Store<B> {
    pub(crate) root: PathBuf,
    pub(crate) backend: B,
    next: u64,
    mounts: Mounts,
}

/// What is mounted below a root: gone when dropped, so that a test that fails leaves nothing.
#[derive(Debug)]
struct Mounts(PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        for mount in mounts::mountinfo::below(&self.0).unwrap() {
            if mount.path() != self.0 {
                mounts::unmount_tree(&mount.path()).unwrap();
            }
        }
    }
}

/// A snapshot in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) id: SnapshotId,
    pub(crate) directory: PathBuf,
    pub(crate) record: Record,
}

impl Made {
    pub(crate) fn held(&self) -> Held<'_> {
        Held {
            id: self.id,
            key: &KEY,
            directory: &self.directory,
            record: &self.record,
        }
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.record.upper(&self.directory)
    }
}

impl<B: Backend> Store<B> {
    /// At a root that is there.
    pub(crate) fn new(root: &Path, backend: B) -> Self {
        let root = root.canonicalize().unwrap();
        fs::create_dir_all(root.join("snapshots")).unwrap();
        Self {
            mounts: Mounts(root.clone()),
            root,
            backend,
            next: 1,
        }
    }

    /// Begins again from what is on the disk, as after kill -9.
    pub(crate) fn restart(self, backend: B, kept: &[(Made, Option<Limit>)]) -> (Self, Report) {
        drop(self.backend);
        let kept: Vec<_> = kept
            .iter()
            .map(|(made, limit)| Kept {
                held: made.held(),
                limit: limit.as_ref(),
            })
            .collect();
        let report = backend.recover(&kept).unwrap();
        let store = Self {
            root: self.root,
            backend,
            next: self.next,
            mounts: self.mounts,
        };
        (store, report)
    }

    /// The next number, and its directory before it has its name.
    pub(crate) fn begin(&mut self) -> (SnapshotId, PathBuf) {
        let id = SnapshotId(self.next);
        self.next += 1;
        let directory = self.root.join(format!("snapshots/new-{id}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .unwrap();
        (id, directory)
    }

    /// Gives a filled directory its name.
    pub(crate) fn finish(&self, id: SnapshotId, new: &Path, record: Record) -> Made {
        let directory = self.root.join(format!("snapshots/{id}"));
        fs::rename(new, &directory).unwrap();
        Made {
            id,
            directory,
            record,
        }
    }

    pub(crate) fn try_prepare(&mut self, limit: &Limit) -> Result<Made> {
        let (id, directory) = self.begin();
        match self.backend.create(&directory, id, limit) {
            Ok(record) => Ok(self.finish(id, &directory, record)),
            Err(error) => {
                self.bury(id, &directory, None);
                Err(error)
            }
        }
    }

    pub(crate) fn prepare(&mut self, limit: &Limit) -> Made {
        self.try_prepare(limit).unwrap()
    }

    pub(crate) fn mount(&self, made: &Made) -> Overlay {
        self.backend.attach(&made.held()).unwrap();
        Overlay::new(&self.root, &made.directory, &made.record)
    }

    pub(crate) fn usage(&self, made: &Made) -> Usage {
        self.backend.usage(&made.held()).unwrap()
    }

    /// As it is done for labels that can be stored.
    pub(crate) fn set_limit(&self, held: &Held<'_>, limit: &Limit) -> Result<()> {
        self.backend.set_limit(held, limit)?;
        self.backend.settle(held, limit)
    }

    pub(crate) fn charge(&self, made: &Made) -> Charge {
        self.backend.charge(&made.held()).unwrap().unwrap()
    }

    /// Commits; the layer is what the snapshot has become, with what it holds.
    pub(crate) fn commit(&self, made: &Made) -> (Made, Usage) {
        let Closed { usage, record } = self.backend.commit(&made.held()).unwrap();
        self.backend.committed(&made.held()).unwrap();
        let layer = Made {
            record,
            ..made.clone()
        };
        let usage = usage.unwrap_or_else(|| {
            self.settle();
            self.usage(&layer)
        });
        (layer, usage)
    }

    pub(crate) fn remove(&self, made: &Made) {
        self.bury(made.id, &made.directory, Some(&made.record));
    }

    /// Releases, deletes and forgets what is in a directory.
    pub(crate) fn bury(&self, id: SnapshotId, directory: &Path, record: Option<&Record>) {
        let grave = self.root.join(format!("snapshots/rm-{id}"));
        if directory != grave {
            fs::rename(directory, &grave).unwrap();
        }
        let left = Left {
            id,
            directory: &grave,
            record,
        };
        self.backend.release(&left).unwrap();
        if grave.exists() {
            fs::remove_dir_all(&grave).unwrap();
        }
        self.backend.forget(&left).unwrap();
    }

    /// What is in memory goes to the disk, and what the file system does in the background is done
    /// soon.
    pub(crate) fn settle(&self) {
        let root = fs::File::open(&self.root).unwrap();
        nix::unistd::syncfs(&root).unwrap();
        if sys::btrfs::is_btrfs(&root).unwrap() {
            // Wakes the thread that drops subvolumes.
            sys::btrfs::sync(&root).unwrap();
        }
    }

    /// Sweeps until nothing is left; file systems give inodes back in the background.
    pub(crate) fn sweep_until_clean(&self) {
        let start = std::time::Instant::now();
        loop {
            let report = self.backend.sweep().unwrap();
            if report.strays.is_empty() {
                return;
            }
            assert!(start.elapsed().as_secs() < 60, "{report:?}");
            self.settle();
        }
    }
}

/// A hard limit of so many bytes.
pub(crate) fn bytes(bytes: u64) -> Limit {
    Limit {
        mode: Mode::Hard,
        bytes: Size::from_bytes(bytes),
        ..Limit::counted()
    }
}

/// A hard limit of so many inodes.
pub(crate) fn inodes(count: u64) -> Limit {
    Limit {
        mode: Mode::Hard,
        inodes: Inodes::new(count),
        ..Limit::counted()
    }
}

/// The same in a group.
pub(crate) fn in_group(limit: Limit, name: &str) -> Limit {
    Limit {
        group: Some(Group {
            namespace: "test".to_owned(),
            name: name.parse().unwrap(),
        }),
        ..limit
    }
}
