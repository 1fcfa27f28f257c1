//! Who may change a store at the same time: many who add, or one who removes. The lock is the kernel's, so
//! it goes with the process that has it, however that ends.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

const FILE: &str = "lock";

/// Whoever adds waits for one who removes, which is done after a look at everything.
const ADD_WAIT: Duration = Duration::from_secs(600);

/// The right to change a store, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Held {
    _lock: Flock<File>,
}

/// Objects are put, and what is there is counted upon.
pub(super) fn adding(directory: &Path) -> Result<Held> {
    take(directory, FlockArg::LockShared, ADD_WAIT)
}

/// Objects go.
pub(super) fn removing(directory: &Path, wait: Duration) -> Result<Held> {
    take(directory, FlockArg::LockExclusive, wait)
}

fn take(directory: &Path, how: FlockArg, wait: Duration) -> Result<Held> {
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
    lock.map(|lock| Held { _lock: lock })
        .ok_or_else(|| busy(directory))
}

fn busy(directory: &Path) -> Error {
    Error::Busy {
        directory: directory.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tempfile::tempdir;

    use super::*;

    #[test]
    fn many_add_and_one_alone_removes() {
        let directory = tempdir().unwrap();
        let path = directory.path();
        let (one, other) = (adding(path).unwrap(), adding(path).unwrap());
        let error = removing(path, Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        let error = removing(path, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        drop((one, other));
        // The one that gave up may have it for a moment.
        let alone = removing(path, Duration::from_secs(60)).unwrap();
        let adding = thread::spawn({
            let path = path.to_owned();
            move || adding(&path).map(drop)
        });
        drop(alone);
        adding.join().unwrap().unwrap();
    }
}
