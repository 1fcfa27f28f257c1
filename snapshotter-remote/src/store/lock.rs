//! Who may change a store at the same time: many who add, or one who removes. The lock is the kernel's, so
//! it goes with the process that has it, however that ends; in a bucket it is a lease.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    lease::{self, Kind, Lease, Step},
    objects::{Ground, Objects},
};
use crate::error::{Error, Result};

const FILE: &str = "lock";

/// Whoever adds waits for one who removes, which is done after a look at everything.
const ADD_WAIT: Duration = Duration::from_secs(600);

/// The right to change a store, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) enum Held {
    /// The kernel keeps it.
    Directory {
        /// Until it is closed.
        _lock: Flock<File>,
    },
    /// It is in the bucket itself.
    Bucket(Box<Lease>),
}

impl Held {
    /// Whether it is still ours, as far as this machine knows: asked before each step that others must not undo, or that would undo
    /// theirs. The step is done before what comes back is dropped.
    ///
    /// # Errors
    /// [`Error::Lapsed`].
    pub(super) fn check(&self) -> Result<Option<Step<'_>>> {
        match self {
            Self::Directory { .. } => Ok(None),
            Self::Bucket(lease) => lease.check().map(Some),
        }
    }

    /// The same, asking the bucket: before what leads to others, and before the first of many steps.
    ///
    /// # Errors
    /// [`Error::Lapsed`], and what the bucket answers.
    pub(super) fn confirm(&self) -> Result<Option<Step<'_>>> {
        match self {
            Self::Directory { .. } => Ok(None),
            Self::Bucket(lease) => lease.confirm().map(Some),
        }
    }
}

/// Objects are put, and what is there is counted upon.
pub(super) fn adding(objects: &Objects) -> Result<Held> {
    let wait = match objects.ground() {
        Ground::Directory(_) => ADD_WAIT,
        Ground::Bucket(_) => lease::ADD_WAIT,
    };
    take(objects, Kind::Adding, wait)
}

/// Objects go.
pub(super) fn removing(objects: &Objects, wait: Duration) -> Result<Held> {
    take(objects, Kind::Removing, wait)
}

fn take(objects: &Objects, kind: Kind, wait: Duration) -> Result<Held> {
    match objects.ground() {
        Ground::Directory(directory) => lock(directory.path(), kind, wait),
        Ground::Bucket(bucket) => {
            let lease = lease::take(objects, bucket, kind, wait)?;
            Ok(Held::Bucket(Box::new(lease)))
        }
    }
}

fn lock(directory: &Path, kind: Kind, wait: Duration) -> Result<Held> {
    let how = match kind {
        Kind::Adding => FlockArg::LockShared,
        Kind::Removing => FlockArg::LockExclusive,
    };
    let path = directory.join(FILE);
    let failed = |source| Error::File {
        doing: "locking",
        path: path.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed)?;
    let lock = sys::lock_within(file, how, wait).map_err(failed)?;
    let held = lock.map(|lock| Held::Directory { _lock: lock });
    held.ok_or_else(|| Error::Busy {
        store: directory.display().to_string(),
        way_out: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tempfile::tempdir;

    use super::*;
    use crate::store::Place;

    #[test]
    fn many_add_and_one_alone_removes() {
        let directory = tempdir().unwrap();
        let objects = Objects::at(&Place::from(directory.path())).unwrap();
        let (one, other) = (adding(&objects).unwrap(), adding(&objects).unwrap());
        let error = removing(&objects, Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        let error = removing(&objects, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        drop((one, other));
        // The one that gave up may have it for a moment.
        let alone = removing(&objects, Duration::from_secs(60)).unwrap();
        let adding = thread::spawn({
            let objects = objects.clone();
            move || adding(&objects).map(drop)
        });
        drop(alone);
        adding.join().unwrap().unwrap();
    }
}
