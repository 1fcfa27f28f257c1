//! What templates have on disk: nothing of themselves, but where their holders are found.
//!
//! ```text
//!   HOME/templates/KEY.log       locked as long as its maker or holder lives; why there is none
//!   HOME/templates/KEY.socket    of a holder that has one
//!   HOME/templates/KEY.console   of the machine that is being made one, and what QEMU says
//!   HOME/templates/KEY.qemu
//! ```
//! Files whose lock is free are nobody's: whoever comes next takes them over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};

use super::Key;
use crate::home::Home;
use crate::{Error, Result};

/// Who could not be made is not tried again for so long.
const FAILED_FOR: Duration = Duration::from_secs(600);

/// Longest reason that is read.
const REASON_BYTES_MAX: u64 = 8 << 10;

/// Ends of the names of what belongs to a key.
const LOG: &str = "log";
const SOCKET: &str = "socket";
const CONSOLE: &str = "console";
const QEMU: &str = "qemu";

/// The folder of templates.
#[derive(Debug, Clone)]
pub struct Places(PathBuf);

/// The right to make, and to hold, the template of a key. Dropped, it is another's.
#[derive(Debug)]
pub(crate) struct Claim {
    log: Flock<File>,
    path: PathBuf,
}

/// Whether a template that could not be made a moment ago is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Not for a while.
    Later,
    /// At once.
    Now,
}

impl Claim {
    /// Writes why there is no template. The reason stays, for a while.
    pub(crate) fn fail(self, why: &str) {
        let mut log: &File = &self.log;
        // Then nobody learns why.
        let _untold = log.set_len(0).and_then(|()| writeln!(log, "{why}"));
    }

    /// Leaves nothing.
    pub(crate) fn remove(self) {
        // Locked still: nobody has taken it over.
        let _gone = fs::remove_file(&self.path);
    }
}

fn is_recent_failure(log: &fs::Metadata) -> bool {
    // A clock that was set back makes it one of a moment ago.
    let is_recent = |at: SystemTime| at.elapsed().unwrap_or_default() < FAILED_FOR;
    log.len() > 0 && log.modified().is_ok_and(is_recent)
}

impl Places {
    /// Of that home.
    #[must_use]
    pub fn of(home: &Home) -> Self {
        Self(home.templates())
    }

    fn path(&self, key: &Key, end: &str) -> PathBuf {
        self.0.join(format!("{key}.{end}"))
    }

    /// For what the guest writes to its console.
    pub(crate) fn console(&self, key: &Key) -> PathBuf {
        self.path(key, CONSOLE)
    }

    /// For what QEMU writes to its standard error.
    pub(crate) fn qemu_log(&self, key: &Key) -> PathBuf {
        self.path(key, QEMU)
    }

    /// Takes the right to make that template; none when another has it, or failed a moment ago.
    ///
    /// # Errors
    /// What keeps the file from being made.
    pub(crate) fn claim(&self, key: &Key, retry: Retry) -> Result<Option<Claim>> {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.0);
        made.map_err(Error::on("create", &self.0))?;
        let path = self.path(key, LOG);
        let mut options = File::options();
        let options = options.create(true).read(true).write(true).truncate(false);
        let log = options.open(&path).map_err(Error::on("create", &path))?;
        let lock = sys::lock_within(log, FlockArg::LockExclusive, Duration::ZERO);
        let Some(log) = lock.map_err(Error::on("lock", &path))? else {
            return Ok(None);
        };
        let own = log.metadata().map_err(Error::on("stat", &path))?;
        // Whoever had it may have removed it just now, and another made it anew.
        if fs::metadata(&path).map_or(0, |there| there.ino()) != own.ino() {
            return Ok(None);
        }
        if retry == Retry::Later && is_recent_failure(&own) {
            return Ok(None);
        }
        log.set_len(0).map_err(Error::on("write", &path))?;
        Ok(Some(Claim { log, path }))
    }

    /// Whether it is worth a try: nobody makes it or has just failed to.
    pub(crate) fn may_make(&self, key: &Key) -> bool {
        !self.is_claimed(key)
            && fs::metadata(self.path(key, LOG)).map_or(true, |log| !is_recent_failure(&log))
    }

    /// Whether somebody makes or holds that template.
    pub(crate) fn is_claimed(&self, key: &Key) -> bool {
        let Ok(log) = File::open(self.path(key, LOG)) else {
            return false;
        };
        matches!(
            sys::lock_within(log, FlockArg::LockShared, Duration::ZERO),
            Ok(None)
        )
    }

    /// Why that template could not be made, if that was tried.
    pub(crate) fn failure(&self, key: &Key) -> Option<String> {
        let log = File::open(self.path(key, LOG)).ok()?;
        let mut text = Vec::new();
        log.take(REASON_BYTES_MAX).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Keys of which there is anything.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn keys(&self) -> Result<BTreeSet<Key>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            other => other.map_err(Error::on("list", &self.0))?,
        };
        let mut keys = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(Error::on("list", &self.0))?.file_name();
            let name = name.to_string_lossy();
            let key = name.split_once('.').and_then(|(key, _)| Key::parse(key));
            keys.extend(key);
        }
        Ok(keys)
    }

    /// Removes what a maker or holder that is gone has left of that key; what one that lives has stays, and
    /// with [`Retry::Later`] also the reason of one that has just failed.
    pub(crate) fn sweep(&self, key: &Key, retry: Retry) -> Result<()> {
        if let Some(claim) = self.claim(key, retry)? {
            self.remove_files(key, &[SOCKET, CONSOLE, QEMU]);
            claim.remove();
        }
        Ok(())
    }

    /// The files of a machine that is a template now, or could not become one.
    pub(crate) fn remove_making(&self, key: &Key) {
        self.remove_files(key, &[CONSOLE, QEMU]);
    }

    fn remove_files(&self, key: &Key, ends: &[&str]) {
        for end in ends {
            // It need not be there.
            let _gone = fs::remove_file(self.path(key, end));
        }
    }

    /// Does something with a path to the socket that fits into an address, however long that of the
    /// folder is.
    fn with_socket<T>(&self, key: &Key, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let folder = File::open(&self.0)?;
        let folder = format!("/proc/self/fd/{}", folder.as_raw_fd());
        act(&Path::new(&folder).join(format!("{key}.{SOCKET}")))
    }

    /// Reaches the holder of that template; none when there is none.
    pub(crate) fn connect(&self, key: &Key) -> Option<UnixStream> {
        // Whatever is in the way, nobody answers.
        self.with_socket(key, |path| UnixStream::connect(path)).ok()
    }

    /// Listens as the holder of that template, in place of one before, who sees that he is replaced.
    pub(crate) fn listen(&self, key: &Key) -> Result<Listener> {
        let path = self.path(key, SOCKET);
        self.remove_files(key, &[SOCKET]);
        let listener = self.with_socket(key, |path| UnixListener::bind(path));
        let socket = listener.map_err(Error::on("listen at", &path))?;
        let inode = fs::metadata(&path).map_err(Error::on("stat", &path))?.ino();
        Ok(Listener {
            socket,
            path,
            inode,
        })
    }
}

/// A holder's socket. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Whether it is found still: it may have been replaced, or its folder removed.
    pub(crate) fn is_found(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|there| there.ino() == self.inode)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_found() {
            // Nobody is left to care.
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// All of a file whatever its position is, which is shared with others; at most so many bytes.
pub(crate) fn contents(file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > bytes_max {
        return Err(io::Error::other(format!(
            "it has {length} bytes, at most {bytes_max}"
        )));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_made_by_one_and_not_again_after_it_failed() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places(directory.path().join("templates"));
        let key = Key::parse("0123456789abcdef").unwrap();
        let claim = |retry| places.claim(&key, retry).unwrap();
        assert!(!places.is_claimed(&key) && places.keys().unwrap().is_empty());
        let first = claim(Retry::Later).unwrap();
        assert!(places.is_claimed(&key) && claim(Retry::Now).is_none());
        first.fail("no such kernel");
        assert_eq!(places.failure(&key).as_deref(), Some("no such kernel"));
        assert!(!places.is_claimed(&key) && claim(Retry::Later).is_none());
        assert_eq!(places.keys().unwrap(), BTreeSet::from([key.clone()]));
        let second = claim(Retry::Now).unwrap();
        assert_eq!(places.failure(&key), None);
        // Killed: it left a socket at which nobody listens, and nothing to be afraid of.
        std::mem::forget(places.listen(&key).unwrap());
        fs::write(places.console(&key), "").unwrap();
        places.sweep(&key, Retry::Now).unwrap();
        assert!(places.is_claimed(&key) && places.console(&key).exists());
        drop(second);
        places.sweep(&key, Retry::Now).unwrap();
        assert!(places.keys().unwrap().is_empty());
    }

    #[test]
    fn who_is_replaced_sees_it_and_takes_nothing_of_the_other_away() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("l".repeat(200));
        fs::create_dir(&long).unwrap();
        let places = Places(long);
        let key = Key::parse("0123456789abcdef").unwrap();
        assert!(places.connect(&key).is_none());
        let first = places.listen(&key).unwrap();
        assert!(first.is_found() && places.connect(&key).is_some());
        let second = places.listen(&key).unwrap();
        assert!(!first.is_found());
        drop(first);
        assert!(second.is_found() && places.connect(&key).is_some());
        drop(second);
        assert!(places.keys().unwrap().is_empty());
    }
}
