//! A large tree, deleted by several threads that take parts of it by turns; must not delete what is
//! above the parts.

use std::{
    collections::VecDeque,
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{dir::Dir, errno::Errno};

use super::{Crossing, NAMES_MAX, interrupted_unless, is_directory, open, remove};

/// They mostly wait, so it may be more than there are processors.
const THREADS: usize = 4;

/// Parts that are looked for, so that no thread is left with one large part.
const PARTS: usize = 64;

/// Directories that are looked into for them.
const OPENED_MAX: usize = 64;

/// A directory below an open one.
struct Part {
    above: Arc<OwnedFd>,
    name: CString,
}

/// Deletes most of `name` in `folder`.
///
/// # Errors
/// The first refusal of any thread; the others end early then.
pub(super) fn delete(
    crossing: Crossing,
    folder: BorrowedFd<'_>,
    name: &CStr,
    go_on: &(dyn Fn() -> bool + Sync),
) -> io::Result<()> {
    let parts = Mutex::new(find(crossing, folder, name)?);
    let failure = Mutex::new(None);
    let work = || {
        while let Some(part) = lock(&parts).pop() {
            let may = |_| interrupted_unless(go_on() && lock(&failure).is_none());
            if let Err(errno) = remove(crossing, part.above.as_fd(), &part.name, &may) {
                lock(&failure).get_or_insert(errno);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS {
            let thread = std::thread::Builder::new().name("sweeper-help".to_owned());
            // Without help it takes longer.
            let _started = thread.spawn_scoped(scope, work);
        }
        work();
    });
    match lock(&failure).take() {
        None => Ok(()),
        Some(errno) => Err(errno.into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directories that together hold most of the tree, the widest levels first.
fn find(crossing: Crossing, folder: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut unopened = VecDeque::from([Part {
        above: Arc::new(folder.try_clone_to_owned()?),
        name: name.to_owned(),
    }]);
    for _ in 0..OPENED_MAX {
        if parts.len() + unopened.len() >= PARTS {
            break;
        }
        let Some(part) = unopened.pop_front() else {
            break;
        };
        let here = match open(crossing, part.above.as_fd(), &part.name) {
            Ok(here) => Arc::new(here),
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let names = directories(&here)?;
        if names.is_empty() {
            parts.push(part);
        }
        let below = names.into_iter().map(|name| Part {
            above: Arc::clone(&here),
            name,
        });
        unopened.extend(below);
    }
    parts.extend(unopened);
    Ok(parts)
}

fn directories(here: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(here.try_clone()?)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if is_directory(here.as_fd(), name, entry.file_type())? {
            names.push(name.to_owned());
        }
        if names.len() == NAMES_MAX {
            break;
        }
    }
    Ok(names)
}
