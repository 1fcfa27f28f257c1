//! The database and its file: opened, written and read by turns. It knows no snapshots but by the
//! tables.
//!
//! A write that fails (a full disk, a failing one) makes redb refuse all that follows; the file is
//! closed and opened again then, which brings back the last commit. Where it cannot be opened as
//! opening writes, a copy in memory is read, until a change finds that it can.

use std::{
    fmt, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use redb::{
    BackendError, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageBackend,
};

use super::{
    file::{self, StoreFile},
    tables::{self, Tables, View},
};
use crate::{Error, Result, Snapshot, SnapshotId};

/// Pages kept in memory. A record has some 500 bytes, so all of 30,000 snapshots.
const CACHE_BYTES: usize = 16 << 20;

/// What the store did and cost.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Commits: shared by all changes that waited.
    pub(crate) commits: AtomicU64,
    /// Calls of fdatasync(2).
    pub(crate) syncs: AtomicU64,
}

/// What redb writes to. It syncs when it is told.
#[derive(Debug)]
struct Told(Arc<Syncing>);

/// Whether a sync may wait until those are answered who need none.
#[derive(Debug)]
struct Syncing {
    disk: Arc<dyn StorageBackend>,
    postponed: AtomicBool,
    owed: AtomicBool,
    figures: Arc<Figures>,
}

/// The store's file, open, or waiting to be opened again.
pub(super) struct Storage {
    path: PathBuf,
    open: RwLock<Option<Open>>,
    syncing: Mutex<Option<Arc<Syncing>>>,
    /// Snapshots whose sidecars were written, which the next transaction notes.
    current: Mutex<Vec<SnapshotId>>,
    figures: Arc<Figures>,
}

struct Open {
    database: Database,
    of: Of,
}

/// Of what a database is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Disk,
    /// A copy in memory, to be read.
    Copy,
}

/// What it is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Reading,
    Writing,
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Storage").field(&self.path).finish()
    }
}

/// A commit that all see and no end of the process undoes, not on the disk yet.
#[must_use = "it is not on the disk before it is settled"]
pub(super) struct Committed<'a>(&'a Storage);

impl Storage {
    /// Makes an empty file where there is none.
    pub(super) fn make(path: &Path) -> Result<Self> {
        Self::with(path, Arc::new(StoreFile::make(path)?))
    }

    pub(super) fn open(path: &Path) -> Result<Self> {
        let this = Self {
            path: path.to_owned(),
            open: RwLock::default(),
            syncing: Mutex::default(),
            current: Mutex::default(),
            figures: Arc::default(),
        };
        this.open_for(For::Reading)?;
        Ok(this)
    }

    /// Refuses a store of another version, or another program, and gives the end of the reserved
    /// numbers.
    pub(super) fn check(&self) -> Result<u64> {
        let checked = self.begin_read().and_then(|read| tables::check(&read));
        checked.map_err(|error| match error {
            Error::Store { source, .. } => Error::Corrupt {
                path: self.path.clone(),
                why: source.to_string(),
            },
            other => other,
        })
    }

    /// A disk is what a file is here: its `sync_data` returns when all is written.
    pub(super) fn with(path: &Path, disk: Arc<dyn StorageBackend>) -> Result<Self> {
        let figures = Arc::default();
        let (database, syncing) = open_database(path, disk, &figures)?;
        Ok(Self {
            path: path.to_owned(),
            open: RwLock::new(Some(Open {
                database,
                of: Of::Disk,
            })),
            syncing: Mutex::new(Some(syncing)),
            current: Mutex::default(),
            figures,
        })
    }

    pub(super) fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }

    pub(super) fn view(&self) -> Result<View> {
        View::new(&self.begin_read()?)
    }

    pub(super) fn stale_sidecars(&self) -> Result<Vec<Snapshot>> {
        tables::stale(&self.begin_read()?)
    }

    pub(super) fn sidecar_is_current(&self, id: SnapshotId) {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).push(id);
    }

    fn begin_read(&self) -> Result<ReadTransaction> {
        self.open_for(For::Reading)?;
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let open = open.as_ref().ok_or_else(|| self.closed())?;
        open.database.begin_read().map_err(failed("read"))
    }

    /// Writes and waits for the disk.
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut Tables<'_>) -> Result<T>) -> Result<T> {
        let (outcome, committed) = self.write_through(change)?;
        committed.settle()?;
        Ok(outcome)
    }

    /// Writes so far that others see it. An error of `change` leaves all as it was.
    pub(super) fn write_through<T>(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T>,
    ) -> Result<(T, Committed<'_>)> {
        self.open_for(For::Writing)?;
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Open {
            database,
            of: Of::Disk,
        }) = open.as_ref()
        else {
            return Err(self.closed());
        };
        let outcome = self.transact(database, change);
        drop(open);
        if matches!(outcome, Err(Error::Store { .. } | Error::Io { .. })) {
            self.close();
        }
        outcome.map(|outcome| (outcome, Committed(self)))
    }

    fn transact<T>(
        &self,
        database: &Database,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T>,
    ) -> Result<T> {
        let transaction = database.begin_write().map_err(failed("write"))?;
        let mut tables = Tables::open(&transaction)?;
        let current = self.current.lock();
        let current = std::mem::take(&mut *current.unwrap_or_else(PoisonError::into_inner));
        let noted = current
            .into_iter()
            .try_for_each(|id| tables.sidecar_is_current(id));
        let outcome = noted.and_then(|()| change(&mut tables));
        drop(tables);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                transaction.abort().map_err(failed("write"))?;
                return Err(error);
            }
        };
        self.with_syncing(|syncing| syncing.postponed.store(true, Ordering::Release));
        let committed = transaction.commit();
        self.with_syncing(|syncing| syncing.postponed.store(false, Ordering::Release));
        committed.map_err(failed("write"))?;
        self.figures.commits.fetch_add(1, Ordering::Relaxed);
        Ok(outcome)
    }

    fn with_syncing(&self, act: impl FnOnce(&Syncing)) {
        let syncing = self.syncing.lock();
        if let Some(syncing) = syncing.unwrap_or_else(PoisonError::into_inner).as_ref() {
            act(syncing);
        }
    }

    /// After this, all is as of the last commit that is on the disk.
    fn close(&self) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.take() {
            // It says again what made us close it.
            let _again = open.database.close();
        }
    }

    fn open_for(&self, what: For) -> Result<()> {
        let is_enough = |open: &Option<Open>| {
            open.as_ref()
                .is_some_and(|open| what == For::Reading || open.of == Of::Disk)
        };
        if is_enough(&self.open.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if is_enough(&open) {
            return Ok(());
        }
        let opened = StoreFile::open(&self.path)
            .and_then(|file| open_database(&self.path, Arc::new(file), &self.figures));
        let why = match opened {
            Ok((database, syncing)) => {
                *self.syncing.lock().unwrap_or_else(PoisonError::into_inner) = Some(syncing);
                let of = Of::Disk;
                *open = Some(Open { database, of });
                return Ok(());
            }
            Err(error) if error.is_full() || error.is_read_only() => error,
            Err(error) => return Err(error),
        };
        if open.is_none() {
            let copy = Arc::new(file::copy(&self.path)?);
            let (database, _never_synced) = open_database(&self.path, copy, &self.figures)?;
            let why = why.in_one_line();
            tracing::warn!(why, "the store can be read, not written; free some room");
            let of = Of::Copy;
            *open = Some(Open { database, of });
        }
        match what {
            For::Reading => Ok(()),
            For::Writing => Err(why),
        }
    }

    fn closed(&self) -> Error {
        Error::Unavailable(format!(
            "{} could not be written and is opened again at the next request; try again",
            self.path.display()
        ))
    }
}

impl Committed<'_> {
    /// Waits for the disk.
    ///
    /// # Errors
    /// The commit may or may not outlive a loss of power.
    pub(super) fn settle(self) -> Result<()> {
        let syncing = self.0.syncing.lock();
        let syncing = syncing.unwrap_or_else(PoisonError::into_inner).clone();
        let settled = syncing.map_or(Ok(()), |syncing| syncing.settle());
        settled.map_err(|error| {
            self.0.close();
            Error::io("sync", &self.0.path)(error)
        })
    }
}

fn open_database(
    path: &Path,
    disk: Arc<dyn StorageBackend>,
    figures: &Arc<Figures>,
) -> Result<(Database, Arc<Syncing>)> {
    let syncing = Arc::new(Syncing {
        disk,
        postponed: AtomicBool::new(false),
        owed: AtomicBool::new(false),
        figures: Arc::clone(figures),
    });
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    // A page that went bad since it was closed must be found here: redb panics when it meets one.
    builder.set_check_integrity_on_open(true);
    let database = builder.create_with_backend(Told(Arc::clone(&syncing)));
    Ok((database.map_err(|error| damaged(path, error))?, syncing))
}

pub(super) fn damaged(path: &Path, error: DatabaseError) -> Error {
    match redb::Error::from(error) {
        redb::Error::Io(error) if !is_about_content(&error) => Error::io("open", path)(error),
        error => Error::Corrupt {
            path: path.to_owned(),
            why: error.to_string(),
        },
    }
}

/// redb says by these that a file is none of its own or too short.
fn is_about_content(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof)
}

/// For `map_err`: what redb could not do.
pub(super) fn failed<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |error| match error.into() {
        redb::Error::Io(source) => Error::Io {
            action,
            path: super::STORE_FILE.into(),
            source,
        },
        redb::Error::DatabaseClosed => Error::Unavailable(
            "the snapshot store was opened again meanwhile; try again".to_owned(),
        ),
        source => Error::Store {
            action,
            source: Box::new(source),
        },
    }
}

impl Syncing {
    fn sync(&self) -> io::Result<()> {
        self.figures.syncs.fetch_add(1, Ordering::Relaxed);
        self.disk.sync_data()
    }

    fn settle(&self) -> io::Result<()> {
        if self.owed.swap(false, Ordering::AcqRel) {
            self.sync()?;
        }
        Ok(())
    }
}

impl StorageBackend for Told {
    fn len(&self) -> io::Result<u64> {
        self.0.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.disk.read(offset, out)
    }

    /// A commit that changes the length of the file is synced as redb asks for it, as its order
    /// matters then.
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.postponed.store(false, Ordering::Release);
        self.0.settle()?;
        self.0.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.postponed.load(Ordering::Acquire) {
            self.0.owed.store(true, Ordering::Release);
            return Ok(());
        }
        self.0.owed.store(false, Ordering::Release);
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.disk.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.disk.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.disk.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.disk.unlock_range(start, end)
    }
}
