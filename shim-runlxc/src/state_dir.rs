//! A container's directory below the state root: names in it, making it, taking it away.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bundle::names;
use launch::plan::SeccompFilter;
use nix::fcntl::{Flock, FlockArg};

use crate::id::ContainerId;
use crate::{Error, Result, locks};

/// How often the state root is made again.
const ROOT_ATTEMPTS: usize = 10;

/// `ROOT/ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Where the container's directory is, or would be. `root` is absolute.
    #[must_use]
    pub fn at(root: &Path, id: &ContainerId) -> Self {
        Self {
            path: root.join(id.as_str()),
        }
    }

    /// Makes it, and the root above it.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is one of that name.
    pub fn create(root: &Path, id: &ContainerId) -> Result<Self> {
        let dir = Self::at(root, id);
        let mut builder = DirBuilder::new();
        builder.mode(0o711);
        let mut made = builder.create(&dir.path);
        // The root is missing, or somebody who deleted the last container took it away just now.
        for _ in 0..ROOT_ATTEMPTS {
            if !matches!(&made, Err(e) if e.kind() == ErrorKind::NotFound) {
                break;
            }
            builder
                .recursive(true)
                .create(root)
                .map_err(Error::on("make directory", root))?;
            made = builder.recursive(false).create(&dir.path);
        }
        match made {
            Ok(()) => Ok(dir),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(Error::Exists),
            Err(e) => Err(Error::on("make directory", &dir.path)(e)),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join(names::JOURNAL)
    }

    /// The socket `start` connects to; there until the program runs.
    #[must_use]
    pub fn start_socket(&self) -> PathBuf {
        self.path.join(names::START_SOCKET)
    }

    /// LXC's configuration.
    #[must_use]
    pub fn lxc_config(&self) -> PathBuf {
        self.path.join(names::LXC_CONFIG)
    }

    /// LXC's log.
    #[must_use]
    pub fn lxc_log(&self) -> PathBuf {
        self.path.join(names::LXC_LOG)
    }

    /// Locks the directory for as long as its container is being created; the kernel frees it when
    /// the creator dies.
    ///
    /// # Errors
    /// When it cannot be opened or another has it.
    pub fn lock(&self) -> Result<Flock<File>> {
        let dir = File::open(&self.path).map_err(Error::on("open", &self.path))?;
        Flock::lock(dir, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| Error::on("lock", &self.path)(errno.into()))
    }

    /// As [`StateDir::lock`], but waits for who has it; none when he still has it after `limit`.
    ///
    /// # Errors
    /// When it cannot be opened or locked.
    pub(crate) fn lock_within(&self, limit: Duration) -> Result<Option<Flock<File>>> {
        let dir = File::open(&self.path).map_err(Error::on("open", &self.path))?;
        sys::lock_within(dir, FlockArg::LockExclusive, limit).map_err(Error::on("lock", &self.path))
    }

    /// Whether the directory at this path is still the one that was locked.
    #[must_use]
    pub fn is(&self, locked: &Flock<File>) -> bool {
        let here = std::fs::metadata(&self.path);
        let there = locked.metadata();
        matches!((here, there), (Ok(here), Ok(there)) if (here.dev(), here.ino()) == (there.dev(), there.ino()))
    }

    /// Whether somebody holds [`StateDir::lock`]. It is not taken for that, or a creator who comes
    /// at this moment would fail.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn is_locked(&self) -> Result<bool> {
        let dir = File::open(&self.path).map_err(Error::on("open", &self.path))?;
        locks::is_held(&dir).map_err(Error::on("see who locks", &self.path))
    }

    /// Keeps the container's filter for its execs.
    ///
    /// # Errors
    /// With the file's name.
    pub fn write_filter(&self, filter: &SeccompFilter) -> Result<()> {
        let path = self.path.join(names::FILTER);
        let text = serde_json::to_vec(filter).map_err(|e| Error::on("write", &path)(e.into()))?;
        Self::write(&path, &text)
    }

    /// The container's filter; none when it has none.
    ///
    /// # Errors
    /// When it is there and cannot be read: nothing may run without it.
    pub fn read_filter(&self) -> Result<Option<SeccompFilter>> {
        let path = self.path.join(names::FILTER);
        match std::fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|e| Error::on("read", &path)(e.into()))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::on("read", &path)(e)),
        }
    }

    /// Writes a file of ours.
    ///
    /// # Errors
    /// With the file's name.
    pub fn write(path: &Path, content: &[u8]) -> Result<()> {
        use std::io::Write as _;
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(path).map_err(Error::on("create", path))?;
        file.write_all(content).map_err(Error::on("write", path))
    }

    /// Removes it with all that is in it; nothing there is success.
    ///
    /// # Errors
    /// With the directory's name.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::on("remove", &self.path)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_once_and_removed_twice() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("a/b");
        let id = ContainerId::parse("c").unwrap();
        let dir = StateDir::create(&root, &id).unwrap();
        assert!(dir.exists());
        assert!(!dir.is_locked().unwrap());
        let lock = dir.lock().unwrap();
        assert!(dir.is_locked().unwrap());
        assert!(dir.lock_within(Duration::ZERO).unwrap().is_none());
        drop(lock);
        assert!(dir.lock_within(Duration::ZERO).unwrap().is_some());
        assert!(matches!(StateDir::create(&root, &id), Err(Error::Exists)));
        StateDir::write(&dir.lxc_config(), b"x = y\n").unwrap();
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.exists() && root.exists());
    }
}
