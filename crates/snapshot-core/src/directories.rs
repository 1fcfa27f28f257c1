//! The root of a snapshotter on the disk. It knows names and stages, not what is in a snapshot.
//!
//! ```text
//!  ROOT/lock              held while a daemon runs; its text is the daemon's pid
//!  ROOT/store.redb        what is known of each snapshot
//!  ROOT/ids               the end of the reserved numbers, again
//!  ROOT/snapshots/new-ID  being made   --publish-->  ID  --bury-->  rm-ID  --delete-->  gone
//!  ROOT/snapshots/lost-ID set aside by a rebuild, for a person to look at
//! ```
//!
//! Each step is one rename(2), so a directory is in one stage whenever the process ends, and the
//! next start finds what has no record and deletes it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg};

use crate::{Error, Result, SnapshotId, tree};

/// The folder of the directories, below the root.
pub(crate) const SNAPSHOTS: &str = "snapshots";
const LOCK: &str = "lock";

/// The lower directories of an overlay are listed in one page of mount options.
const ROOT_BYTES_MAX: usize = 512;

/// What no path in the options of an overlay may have: the first three have a meaning there, and
/// containerd cuts at the rest.
const ROOT_CHARACTERS_REFUSED: [char; 5] = [':', ',', '\\', '"', '\''];

/// A root that no other process has as long as this, or a clone of it, is there.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    _lock: Arc<Flock<File>>,
}

/// The directories of one root, locked.
#[derive(Debug)]
pub(crate) struct Directories {
    snapshots: PathBuf,
    folder: OwnedFd,
    /// Released last.
    root: Root,
}

/// What a name below `snapshots` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// `new-ID`
    New,
    /// `ID`
    Published,
    /// `rm-ID`
    Buried,
    /// `lost-ID`
    Lost,
}

impl Stage {
    fn prefix(self) -> &'static str {
        match self {
            Self::New => "new-",
            Self::Published => "",
            Self::Buried => "rm-",
            Self::Lost => "lost-",
        }
    }

    fn name(self, id: SnapshotId) -> String {
        format!("{}{id}", self.prefix())
    }

    fn parse(name: &str) -> Option<(Self, SnapshotId)> {
        let stages = [Self::New, Self::Buried, Self::Lost, Self::Published];
        let (stage, number) = stages
            .into_iter()
            .find_map(|stage| Some((stage, name.strip_prefix(stage.prefix())?)))?;
        let id = SnapshotId(number.parse().ok()?);
        // `+7` and `007` are numbers too, but no names of ours.
        (stage.name(id) == name).then_some((stage, id))
    }
}

impl Root {
    /// Makes the directory if it is missing and keeps others out: for who touches a root before its snapshots are opened.
    ///
    /// # Errors
    /// [`Error::Precondition`] names the process that has it; [`Error::Invalid`] a root whose path
    /// cannot stand in mount options.
    pub fn claim(root: &Path) -> Result<Self> {
        make_private(root)?;
        let path = root.canonicalize().map_err(Error::io("find", root))?;
        check(&path)?;
        let lock = Arc::new(lock(&path)?);
        Ok(Self { path, _lock: lock })
    }

    /// Where it is, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Directories {
    /// Makes what is missing below `root` and keeps others out until it is dropped.
    ///
    /// # Errors
    /// Those of [`Root::claim`].
    pub(crate) fn open(root: &Path) -> Result<Self> {
        Self::of(Root::claim(root)?)
    }

    /// Makes what is missing below a root that was claimed.
    pub(crate) fn of(root: Root) -> Result<Self> {
        let snapshots = root.path().join(SNAPSHOTS);
        make_private(&snapshots)?;
        let folder = File::open(&snapshots).map_err(Error::io("open", &snapshots))?;
        Ok(Self {
            snapshots,
            folder: folder.into(),
            root,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where a snapshot's directory is when it is published.
    pub(crate) fn path(&self, id: SnapshotId) -> PathBuf {
        self.at(Stage::Published, id)
    }

    pub(crate) fn at(&self, stage: Stage, id: SnapshotId) -> PathBuf {
        self.snapshots.join(stage.name(id))
    }

    /// An empty directory that nobody takes for a snapshot, mode 0700.
    pub(crate) fn make(&self, id: SnapshotId) -> Result<PathBuf> {
        let path = self.at(Stage::New, id);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Error::io("make", &path))?;
        Ok(path)
    }

    /// Gives a directory that was made its name.
    pub(crate) fn publish(&self, id: SnapshotId) -> Result<PathBuf> {
        self.rename(id, Stage::New, Stage::Published)
    }

    /// Takes a directory's name away. It may be gone, or buried, already.
    pub(crate) fn bury(&self, id: SnapshotId, from: Stage) -> Result<PathBuf> {
        match self.rename(id, from, Stage::Buried) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(self.at(Stage::Buried, id))
            }
            other => other,
        }
    }

    /// Sets a directory aside that only a person can judge.
    pub(crate) fn set_aside(&self, id: SnapshotId) -> Result<PathBuf> {
        self.rename(id, Stage::Published, Stage::Lost)
    }

    fn rename(&self, id: SnapshotId, from: Stage, to: Stage) -> Result<PathBuf> {
        let (from, to) = (self.at(from, id), self.at(to, id));
        fs::rename(&from, &to).map_err(Error::io("rename", from))?;
        Ok(to)
    }

    /// Deletes a buried directory and all in it, but nothing that is mounted there. `go_on` is
    /// asked now and then.
    ///
    /// # Errors
    /// What keeps it from being deleted, with EINTR when it was not to go on.
    pub(crate) fn delete(&self, id: SnapshotId, go_on: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        let path = self.at(Stage::Buried, id);
        let name = Stage::Buried.name(id);
        tree::delete(&self.folder, &name, &path, go_on).map_err(Error::io("delete", path))
    }

    /// What is there, but for names that are none of ours.
    pub(crate) fn list(&self) -> Result<Vec<(Stage, SnapshotId)>> {
        list(&self.snapshots)
    }
}

/// What is in such a folder, which may not be there yet.
pub(crate) fn list(snapshots: &Path) -> Result<Vec<(Stage, SnapshotId)>> {
    let failed = || Error::io("list", snapshots);
    let entries = match fs::read_dir(snapshots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed())?.file_name();
        match name.to_str().and_then(Stage::parse) {
            Some(known) => found.push(known),
            None => tracing::warn!(?name, "a foreign name among the snapshots is left alone"),
        }
    }
    Ok(found)
}

/// A directory that only its owner may enter, if there is none yet.
fn make_private(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Error::io("make", path))
}

fn check(root: &Path) -> Result<()> {
    let why = match root.to_str() {
        None => "is not UTF-8",
        Some(text) if text.len() > ROOT_BYTES_MAX => "is longer than 512 bytes",
        Some(text)
            if text.contains(ROOT_CHARACTERS_REFUSED)
                || text.contains(|c: char| c.is_whitespace() || c.is_control()) =>
        {
            "has a colon, a comma, a quote, a backslash or a space"
        }
        Some(_) => return Ok(()),
    };
    Err(Error::Invalid(format!(
        "the root {} {why}, so that it cannot stand in the options of a mount: take another",
        root.display()
    )))
}

fn lock(root: &Path) -> Result<Flock<File>> {
    let path = root.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let opened = match options.mode(0o600).open(&path) {
        // It can be held there all the same.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
        other => other,
    };
    let file = opened.map_err(Error::io("open", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let pid = std::process::id().to_string();
            let noted = lock
                .set_len(0)
                .and_then(|()| lock.write_all(pid.as_bytes()));
            if let Err(error) = noted {
                // It only serves who is refused; a full disk must not keep who holds it.
                tracing::debug!(%error, "the holder of the root could not be noted");
            }
            Ok(lock)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let read = file.take(16).read_to_string(&mut pid);
            let holder = match read {
                Ok(1..) => format!("process {pid}"),
                _ => "another process".to_owned(),
            };
            Err(Error::Precondition(format!(
                "the root {} is in use by {holder}: stop that, or give this one a root of its own",
                root.display()
            )))
        }
        Err((_, errno)) => Err(Error::io("lock", path)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_ON: &(dyn Fn() -> bool + Sync) = &|| true;

    #[test]
    fn names_have_one_meaning() {
        let check = |name: &str, expected: Option<(Stage, u64)>| {
            let found = Stage::parse(name).map(|(stage, id)| (stage, id.0));
            assert_eq!(found, expected, "{name}");
        };
        check("7", Some((Stage::Published, 7)));
        check("new-7", Some((Stage::New, 7)));
        check("rm-7", Some((Stage::Buried, 7)));
        check("lost-7", Some((Stage::Lost, 7)));
        check("18446744073709551615", Some((Stage::Published, u64::MAX)));
        for foreign in [
            "",
            "07",
            "+7",
            "7 ",
            "new-",
            "rm-x",
            "new-rm-7",
            "18446744073709551616",
        ] {
            check(foreign, None);
        }
    }

    #[test]
    fn a_directory_goes_through_its_stages() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/root");
        let directories = Directories::open(&root).unwrap();
        let id = SnapshotId(3);
        let list = || directories.list().unwrap();
        fs::write(directories.make(id).unwrap().join("x"), "").unwrap();
        assert!(matches!(directories.make(id), Err(Error::Io { .. })));
        assert_eq!(list(), [(Stage::New, id)]);
        assert_eq!(directories.publish(id).unwrap(), root.join("snapshots/3"));
        assert_eq!(list(), [(Stage::Published, id)]);
        fs::create_dir(root.join("snapshots/foreign")).unwrap();
        assert_eq!(list(), [(Stage::Published, id)]);
        for _twice in 0..2 {
            directories.bury(id, Stage::Published).unwrap();
            assert_eq!(list(), [(Stage::Buried, id)]);
        }
        for _twice in 0..2 {
            directories.delete(id, GO_ON).unwrap();
            assert_eq!(list(), []);
        }
    }

    #[test]
    fn only_one_has_a_root() {
        let folder = tempfile::tempdir().unwrap();
        let first = Directories::open(folder.path()).unwrap();
        let refusal = Directories::open(folder.path()).unwrap_err().to_string();
        let expected = format!("is in use by process {}", std::process::id());
        assert!(refusal.contains(&expected), "{refusal}");
        drop(first);
        Directories::open(folder.path()).unwrap();
    }

    #[test]
    fn a_root_that_cannot_stand_in_mount_options_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a:b", "a,b", "a b", "a\"b", "a\\b", &"n".repeat(255)] {
            let mut root = folder.path().join(name);
            if name.len() == 255 {
                root = root.join(name).join("n");
            }
            let refusal = Directories::open(&root).unwrap_err();
            assert!(matches!(refusal, Error::Invalid(_)), "{refusal}");
        }
    }
}
