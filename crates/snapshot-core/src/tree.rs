//! Directory trees of containers, walked without following anything out of them: deleted, or
//! measured. They may be as deep, as wide and as odd as a hostile container can make them, and may
//! change meanwhile.
//!
//! A directory is entered by its name below a descriptor of its parent, never by a path. Mounts in
//! the tree are not entered: openat2(2) refuses to cross them; before 5.6, which has no such call,
//! the list of mounts is asked first. However deep a tree is, few descriptors are open: those far
//! above are closed and found again by `..`, which must lead to the same inode.

mod together;

use std::{
    ffi::{CStr, CString, OsStr},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::Usage;

/// Directories that stay open on the way down.
const OPEN_MAX: usize = 32;

/// Names of directories that are remembered at once while deleting; the rest is read again.
const NAMES_MAX: usize = 4096;

/// Removals after which a tree is large.
const ALONE_MAX: usize = 2000;

/// Rounds over a directory that others still write to.
const ROUNDS_MAX: usize = 16;

/// What is met on a walk.
enum Met<'a> {
    /// Anything but a directory.
    Entry(BorrowedFd<'a>, &'a CStr),
    /// A directory, when all in it was met.
    Directory(BorrowedFd<'a>, &'a CStr),
}

/// How it is known that a directory is no mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crossing {
    /// The kernel refuses to enter one.
    Refused,
    /// There was none before the walk.
    LookedFor,
}

/// Deletes `name` in `folder` and all below it; `path` is where that is. What is gone is success.
/// Large trees are deleted by several threads: each removal waits for the file system's journal,
/// and waiting together takes a fraction of the time.
///
/// # Errors
/// The first refusal: EXDEV or EBUSY for what is mounted in it, EINTR when `go_on` says no.
pub(crate) fn delete(
    folder: &impl AsFd,
    name: &str,
    path: &Path,
    go_on: &(dyn Fn() -> bool + Sync),
) -> io::Result<()> {
    let crossing = crossing(folder.as_fd(), path)?;
    let name = CString::new(name).map_err(io::Error::other)?;
    let alone = |removed: usize| match removed {
        ..ALONE_MAX => interrupted_unless(go_on()),
        _ => Err(Errno::E2BIG),
    };
    match remove(crossing, folder.as_fd(), &name, &alone) {
        Err(Errno::E2BIG) => {}
        other => return other.map_err(io::Error::from),
    }
    together::delete(crossing, folder.as_fd(), &name, go_on)?;
    let rest = remove(crossing, folder.as_fd(), &name, &|_| {
        interrupted_unless(go_on())
    });
    rest.map_err(io::Error::from)
}

/// Deletes a directory and all below it, however deep; one that is not there is success.
///
/// # Errors
/// The first refusal: EXDEV or EBUSY for what is mounted in it.
pub fn delete_all(path: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Err(Errno::EINVAL.into());
    };
    delete(&std::fs::File::open(folder)?, name, path, &|| true)
}

fn interrupted_unless(go_on: bool) -> nix::Result<()> {
    if go_on { Ok(()) } else { Err(Errno::EINTR) }
}

/// Asks `may` before each removal, with how many there were.
fn remove(
    crossing: Crossing,
    folder: BorrowedFd<'_>,
    name: &CStr,
    may: &dyn Fn(usize) -> nix::Result<()>,
) -> nix::Result<()> {
    let mut walk = Walk {
        crossing,
        names_max: NAMES_MAX,
        levels: Vec::new(),
    };
    let mut removed = 0;
    let gone = walk.run(folder, name, &mut |met| {
        may(removed)?;
        removed += 1;
        let (directory, name, kind) = match met {
            Met::Entry(directory, name) => (directory, name, UnlinkatFlags::NoRemoveDir),
            Met::Directory(directory, name) => (directory, name, UnlinkatFlags::RemoveDir),
        };
        gone_is_success(unlinkat(directory, name, kind))
    });
    gone_is_success(gone)
}

fn gone_is_success(outcome: nix::Result<()>) -> nix::Result<()> {
    match outcome {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// What a directory holds, itself and all below it: bytes allocated, and inodes, each counted once
/// however many names it has. What goes away meanwhile is not counted.
///
/// # Errors
/// What keeps it from being looked at.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let folder: OwnedFd = std::fs::File::open(folder)?.into();
    let crossing = crossing(folder.as_fd(), path)?;
    let name = CString::new(name.as_encoded_bytes()).map_err(io::Error::other)?;
    let mut walk = Walk {
        crossing,
        names_max: usize::MAX,
        levels: Vec::new(),
    };
    let mut usage = Usage::default();
    let mut linked = std::collections::HashSet::new();
    walk.run(folder.as_fd(), &name, &mut |met| {
        let (directory, name, is_directory) = match met {
            Met::Entry(directory, name) => (directory, name, false),
            Met::Directory(directory, name) => (directory, name, true),
        };
        let about = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if is_directory || about.st_nlink == 1 || linked.insert(identity(&about)) {
            usage.inodes += 1;
            usage.bytes += u64::try_from(about.st_blocks).unwrap_or_default() * 512;
        }
        Ok(())
    })?;
    Ok(usage)
}

/// Asks once how mounts are kept out.
fn crossing(folder: BorrowedFd<'_>, path: &Path) -> io::Result<Crossing> {
    match open(Crossing::Refused, folder, c".") {
        Ok(_itself) => return Ok(Crossing::Refused),
        // Before 5.6, or below a filter that does not know it.
        Err(Errno::ENOSYS | Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    look_for_mounts(path)
}

fn look_for_mounts(path: &Path) -> io::Result<Crossing> {
    match mounts::mountinfo::below(path)?.first() {
        None => Ok(Crossing::LookedFor),
        Some(_mount) => Err(Errno::EXDEV.into()),
    }
}

fn open(crossing: Crossing, directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match crossing {
        Crossing::Refused => {
            let how = OpenHow::new()
                .flags(flags)
                .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
            openat2(directory, name, how)
        }
        Crossing::LookedFor => openat(directory, name, flags, Mode::empty()),
    }
}

type Identity = (nix::libc::dev_t, nix::libc::ino_t);

fn identity(about: &FileStat) -> Identity {
    (about.st_dev, about.st_ino)
}

/// A directory on the way down.
struct Level {
    /// None when it was closed to save descriptors, and while it is entered from.
    directory: Option<OwnedFd>,
    identity: Identity,
    name: CString,
    /// Directories in it that are still to be entered.
    names: Vec<CString>,
    /// Not all fitted: it is read again.
    more: bool,
    rounds: usize,
}

struct Walk {
    crossing: Crossing,
    names_max: usize,
    levels: Vec<Level>,
}

type Visit<'v> = dyn FnMut(Met<'_>) -> nix::Result<()> + 'v;

impl Walk {
    fn run(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        visit: &mut Visit<'_>,
    ) -> nix::Result<()> {
        self.enter(folder, name, visit)?;
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.names.pop() {
                self.descend(&name, visit)?;
            } else if level.more {
                read(level, self.names_max, visit)?;
            } else {
                self.leave(folder, visit)?;
            }
        }
        Ok(())
    }

    fn descend(&mut self, name: &CStr, visit: &mut Visit<'_>) -> nix::Result<()> {
        let depth = self.levels.len() - 1;
        let here = self.levels[depth].directory.take().ok_or(Errno::EBADF)?;
        let entered = match self.enter(here.as_fd(), name, visit) {
            // Gone, or something else by now.
            Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTDIR | Errno::ELOOP) => visit(Met::Entry(here.as_fd(), name)),
            other => other,
        };
        self.levels[depth].directory = Some(here);
        entered
    }

    fn enter(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        visit: &mut Visit<'_>,
    ) -> nix::Result<()> {
        let directory = open(self.crossing, parent, name)?;
        let mut level = Level {
            identity: identity(&fstat(&directory)?),
            directory: Some(directory),
            name: name.to_owned(),
            names: Vec::new(),
            more: false,
            rounds: 0,
        };
        read(&mut level, self.names_max, visit)?;
        self.levels.push(level);
        if let Some(far) = self.levels.len().checked_sub(OPEN_MAX) {
            self.levels[far].directory = None;
        }
        Ok(())
    }

    /// Goes up when all in a directory was met.
    fn leave(&mut self, folder: BorrowedFd<'_>, visit: &mut Visit<'_>) -> nix::Result<()> {
        let Some(mut left) = self.levels.pop() else {
            return Ok(());
        };
        let up = match self.levels.last_mut() {
            None => folder,
            Some(above) => {
                if above.directory.is_none() {
                    let below = left.directory.as_ref().ok_or(Errno::EBADF)?;
                    above.directory = Some(reopen(below.as_fd(), above.identity)?);
                }
                above.directory.as_ref().ok_or(Errno::EBADF)?.as_fd()
            }
        };
        match visit(Met::Directory(up, &left.name)) {
            // Somebody made something new in it, or reading it skipped something.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if left.rounds < ROUNDS_MAX => {
                left.more = true;
                self.levels.push(left);
                Ok(())
            }
            other => other,
        }
    }
}

/// Finds the parent of a directory again.
fn reopen(below: BorrowedFd<'_>, expected: Identity) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let above = openat(below, "..", flags, Mode::empty())?;
    if identity(&fstat(&above)?) != expected {
        // The tree was moved about: what is above now may be none of ours.
        return Err(Errno::ESTALE);
    }
    Ok(above)
}

/// Meets all in a directory but directories, whose names are kept.
fn read(level: &mut Level, names_max: usize, visit: &mut Visit<'_>) -> nix::Result<()> {
    level.more = false;
    level.rounds += 1;
    let here = level.directory.as_ref().ok_or(Errno::EBADF)?;
    let copy = here.try_clone();
    let copy = copy.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    // It goes back to the beginning when it is dropped, and `here` with it.
    for entry in Dir::from_fd(copy)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if !is_directory(here.as_fd(), name, entry.file_type())? {
            visit(Met::Entry(here.as_fd(), name))?;
        } else if level.names.len() < names_max {
            level.names.push(name.to_owned());
        } else {
            level.more = true;
            // Those that fitted go away before it is read again, so it is no idle round.
            level.rounds = 1;
        }
    }
    Ok(())
}

fn is_directory(directory: BorrowedFd<'_>, name: &CStr, kind: Option<Type>) -> nix::Result<bool> {
    if let Some(kind) = kind {
        return Ok(kind == Type::Directory);
    }
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(about) => Ok(about.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
