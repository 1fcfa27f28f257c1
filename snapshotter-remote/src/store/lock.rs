//! Who may change a store at the same time: many who add, or one who removes. The lock is the kernel's, so
//! it goes with the process that has it, however that ends.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

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
    let at_once = match how {
        FlockArg::LockShared => FlockArg::LockSharedNonblock,
        _ => FlockArg::LockExclusiveNonblock,
    };
    let file = match Flock::lock(file, at_once) {
        Ok(lock) => return Ok(Held { _lock: lock }),
        Err((file, Errno::EWOULDBLOCK)) if !wait.is_zero() => file,
        Err((_, Errno::EWOULDBLOCK)) => return Err(busy(directory)),
        Err((_, errno)) => return Err(failed(errno.into())),
    };
    // The kernel has no limit for it. A thread that still waits at the limit ends with the process, or gives
    // back at once what it gets.
    let (sender, receiver) = channel();
    thread::spawn(move || {
        // Nobody is there any more after the limit.
        drop(sender.send(Flock::lock(file, how)));
    });
    match receiver.recv_timeout(wait) {
        Ok(Ok(lock)) => Ok(Held { _lock: lock }),
        Ok(Err((_, errno))) => Err(failed(errno.into())),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(busy(directory)),
    }
}

fn busy(directory: &Path) -> Error {
    Error::Busy {
        directory: directory.to_owned(),
    }
}

#[cfg(test)]
mod tests {
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
