//! What is known of every snapshot, in one file that survives crashes. It knows no directories
//! and no driver.
//!
//! ```text
//!  changes  -->  one writer thread: validate, write --> commit (others see it)
//!                  |                                     |-- answer those to whom kill -9 counts
//!                  |                                     |-- fdatasync(2)
//!                  `-- all that wait share it            `-- answer those to whom power loss counts
//!  readers  -->  a view of the last commit; no lock, no waiting
//! ```
//!
//! redb writes each commit anew beside the old one and needs one fdatasync(2) for it. The next
//! commit begins only when that is done, so at no time is more than one commit on its way to the
//! disk: a loss of power undoes the last one or none, whenever it happens. redb's `quick_repair` is
//! off: it would cost a second fdatasync(2) a commit, and spare nothing, as every start reads the
//! whole file to find pages that have gone bad.

mod file;
mod ids;
mod record;
mod sidecar;
mod storage;
mod tables;
mod writer;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Error, Key, Labels, Result, Snapshot, SnapshotId, Timestamp};

use ids::Ids;
pub(crate) use sidecar::Sidecar;
pub(crate) use storage::Figures;
use storage::Storage;
use tables::{META_IDS_END, Tables};
pub(crate) use tables::{View, not_active, not_committed};
use writer::{Durability, Writer};

/// The file's name below the root.
pub(crate) const STORE_FILE: &str = "store.redb";

/// The store of one root. Only one process has it open; the lock of the root sees to that.
#[derive(Debug)]
pub(crate) struct Store {
    storage: Arc<Storage>,
    ids: Ids,
    writer: Arc<Writer>,
}

impl Store {
    /// Whether there is one below `root`. One that was being made when the process ended is none.
    ///
    /// # Errors
    /// What keeps it from being looked at.
    pub(crate) fn exists(root: &Path) -> Result<bool> {
        let path = root.join(STORE_FILE);
        path.try_exists().map_err(Error::io("look for", path))
    }

    /// Makes one below `root`, with what is known already, all at once or not at all. Numbers are
    /// given from `ids_begin` on.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub(crate) fn make(root: &Path, snapshots: &[Snapshot], ids_begin: u64) -> Result<()> {
        let path = root.join(STORE_FILE);
        let unfinished = root.join("store.redb.new");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", unfinished)(error));
            }
            _ => {}
        }
        fill(&Storage::make(&unfinished)?, snapshots, ids_begin)?;
        fs::rename(&unfinished, &path).map_err(Error::io("rename", &unfinished))?;
        let directory = fs::File::open(root).map_err(Error::io("open", root))?;
        directory.sync_all().map_err(Error::io("sync", root))
    }

    /// Opens the one below `root`. No number below `ids_begin` is given.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; [`Error::Precondition`] for the store of a later version.
    pub(crate) fn open(root: &Path, ids_begin: u64) -> Result<Self> {
        Self::over(Storage::open(&root.join(STORE_FILE))?, root, ids_begin)
    }

    fn over(storage: Storage, root: &Path, ids_begin: u64) -> Result<Self> {
        let storage = Arc::new(storage);
        let recorded = storage.check()?;
        let noted = ids::read(root)?.unwrap_or_default();
        let begin = ids_begin.max(recorded).max(noted).max(1);
        let writer = Arc::new(Writer::start(Arc::clone(&storage))?);
        let ids = Ids::new(Arc::clone(&writer), root, begin);
        Ok(Self {
            storage,
            ids,
            writer,
        })
    }

    /// Puts a store that cannot be read out of the way, if there is one, and says where.
    ///
    /// # Errors
    /// What keeps it from being renamed.
    pub(crate) fn put_aside(root: &Path) -> Result<Option<PathBuf>> {
        let path = root.join(STORE_FILE);
        if !Self::exists(root)? {
            return Ok(None);
        }
        let mut number = 0_u32;
        loop {
            let aside = root.join(format!("{STORE_FILE}.broken-{number}"));
            if !aside.try_exists().map_err(Error::io("look for", &aside))? {
                fs::rename(&path, &aside).map_err(Error::io("rename", &path))?;
                return Ok(Some(aside));
            }
            number += 1;
        }
    }

    /// All as of the last commit.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the store cannot be opened again after a failed write.
    pub(crate) fn view(&self) -> Result<View> {
        self.storage.view()
    }

    /// What it cost so far.
    pub(crate) fn figures(&self) -> &Arc<Figures> {
        self.storage.figures()
    }

    /// A number that was never given, not even before a crash.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the next block of numbers could not be reserved.
    pub(crate) fn next_id(&self) -> Result<SnapshotId> {
        self.ids.next()
    }

    /// The lowest number that is not reserved, as it stands beside the store; none when that is
    /// lost too.
    pub(crate) fn ids_noted(root: &Path) -> Result<Option<u64>> {
        ids::read(root)
    }

    /// Snapshots whose sidecars may say something older: the process ended before they were
    /// replaced, or they could not be.
    ///
    /// # Errors
    /// What keeps the store from being read.
    pub(crate) fn stale_sidecars(&self) -> Result<Vec<Snapshot>> {
        self.storage.stale_sidecars()
    }

    /// The sidecar of a snapshot says what the store says. The next change notes it.
    pub(crate) fn sidecar_is_current(&self, id: SnapshotId) {
        self.storage.sidecar_is_current(id);
    }

    /// Adds an active snapshot, a view, or a committed one that nobody prepared; on the disk when it returns.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; [`Error::NotFound`] for the parent; [`Error::Invalid`] for a
    /// parent that is not committed, or not the snapshot that had its name before.
    pub(crate) fn insert(&self, snapshot: Snapshot, parent: Option<SnapshotId>) -> Result<()> {
        let change = move |tables: &mut Tables<'_>| tables.insert(&snapshot, parent);
        self.writer.change(Durability::Disk, change)
    }

    /// Takes a snapshot out; on the disk when it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Precondition`] while others stand on it.
    pub(crate) fn remove(&self, key: &Key) -> Result<Snapshot> {
        let key = key.clone();
        let change = move |tables: &mut Tables<'_>| tables.remove(&key);
        self.writer.change(Durability::Disk, change)
    }

    /// Puts a committed snapshot in the place of an active one; on the disk when it returns.
    ///
    /// # Errors
    /// As containerd's CommitActive has them.
    pub(crate) fn commit(&self, key: &Key, committed: Snapshot) -> Result<()> {
        let key = key.clone();
        let change = move |tables: &mut Tables<'_>| tables.commit(&key, &committed);
        self.writer.change(Durability::Disk, change)
    }

    /// Changes the labels of a snapshot. When it returns, all see it and no end of the process
    /// undoes it; it is on the disk a moment later, so that only a loss of power could.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn relabel(
        &self,
        key: &Key,
        labels: Labels,
        updated: Timestamp,
    ) -> Result<Snapshot> {
        let key = key.clone();
        let change = move |tables: &mut Tables<'_>| tables.relabel(&key, labels, updated);
        self.writer.change(Durability::Process, change)
    }
}

/// Writes all that a new store has.
fn fill(storage: &Storage, snapshots: &[Snapshot], ids_begin: u64) -> Result<()> {
    let ids: BTreeMap<&Key, SnapshotId> = snapshots
        .iter()
        .map(|one| (&one.info.name, one.id))
        .collect();
    storage.write(|tables| {
        tables.set_schema()?;
        tables.set_meta(META_IDS_END, ids_begin)?;
        for snapshot in snapshots {
            let parent = snapshot.info.parent.as_ref();
            tables.restore(snapshot, parent.and_then(|key| ids.get(key)).copied())?;
        }
        Ok(())
    })
}

impl Drop for Store {
    fn drop(&mut self) {
        self.writer.end();
    }
}

#[cfg(test)]
mod tests;
