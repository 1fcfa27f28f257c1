//! What a snapshotter adds to the core: how a snapshot's directory is filled, mounted and measured.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{Key, Kind, Labels, Note, Result, Snapshot, SnapshotId, Usage};

/// A mount as containerd is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// File system type: `overlay`, `bind`.
    pub kind: String,
    /// Directory or device; the type again where the kernel ignores it.
    pub source: String,
    /// In the words of fstab(5).
    pub options: Vec<String>,
}

/// A snapshot that is asked for and has no record yet.
#[derive(Debug)]
pub struct NewSnapshot<'a> {
    /// Its number, fresh.
    pub id: SnapshotId,
    /// Its name.
    pub key: &'a Key,
    /// [`Kind::Active`] or [`Kind::View`].
    pub kind: Kind,
    /// The committed snapshots below it, nearest first.
    pub parents: &'a [Snapshot],
    /// What containerd set.
    pub labels: &'a Labels,
}

/// A snapshot that is to be mounted, with everything below it.
#[derive(Debug)]
pub struct Chain {
    /// Active or a view.
    pub snapshot: Snapshot,
    /// Its directory.
    pub directory: PathBuf,
    /// The committed snapshots below it and their directories, nearest first.
    pub parents: Vec<(Snapshot, PathBuf)>,
}

/// What is left of a snapshot whose record is gone: its directory and what the sidecar says.
#[derive(Debug)]
pub struct Remains {
    /// Its number.
    pub id: SnapshotId,
    /// What the driver had kept; `None` when the directory was never finished.
    pub note: Option<Note>,
    /// The directory, under another name already.
    pub directory: PathBuf,
}

/// What a driver says of a snapshot it has closed for ever.
#[derive(Debug)]
pub struct Committed {
    /// What it holds; answered by Usage from now on. `None` when [`Driver::usage`] is to be asked
    /// each time: it must not walk then.
    pub usage: Option<Usage>,
    /// What the driver keeps with it from now on.
    pub note: Note,
}

/// One snapshotter's way with directories.
///
/// Every method may block, runs on a thread of its own, and may be called again after a crash in
/// the middle of it: each must be idempotent. The core serialises calls for one snapshot, never
/// those for different ones; but [`Driver::usage`] may run beside any other, as it may take long
/// and must not keep a resize from being made.
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// Fills `directory`, which is empty, mode 0700, on the file system of the root and not under
    /// its final name yet. On an error the core buries it as [`Remains`].
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for labels of ours that make no sense, before anything is made.
    fn create(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Note>;

    /// The layer that is to be unpacked into this snapshot, if the driver has it already: an active
    /// snapshot with the label [`crate::TARGET_LABEL`] was asked for. The directory is as for
    /// [`Driver::create`], which follows when the answer is none; then nothing may be in it.
    ///
    /// # Errors
    /// What keeps that from being known; the request fails.
    fn ready_made(&self, _: &NewSnapshot<'_>, _: &Path) -> Result<Option<Committed>> {
        Ok(None)
    }

    /// How the snapshot is mounted. Called at Prepare and View, before the snapshot is recorded, and
    /// at Mounts: also after a restart of the daemon or of the machine, so it puts back in place
    /// what a reboot took away.
    ///
    /// # Errors
    /// What keeps it from being mounted.
    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>>;

    /// Labels are about to change from `snapshot.info.labels` to `labels`; called inside
    /// containerd's own transaction, so it must take microseconds. Called once more the other way
    /// when the change could not be stored, and for both the same when a commit could not be:
    /// what it had closed is open again then.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] refuses the change.
    fn update(&self, snapshot: &Snapshot, directory: &Path, labels: &Labels) -> Result<()>;

    /// The change is stored, and `snapshot` has it: does what [`Driver::update`] must not, since it
    /// could not be taken back. containerd waits inside its transaction for this, too.
    ///
    /// # Errors
    /// The labels before are stored again, and [`Driver::update`] is called the other way.
    fn updated(&self, _: &Snapshot, _: &Path) -> Result<()> {
        Ok(())
    }

    /// What an active snapshot or a view holds now, and a committed one that was not counted at its
    /// commit. What goes wrong because the snapshot is removed
    /// meanwhile is not told to anybody.
    ///
    /// # Errors
    /// What kept it from being measured.
    fn usage(&self, snapshot: &Snapshot, directory: &Path) -> Result<Usage>;

    /// Closes an active snapshot: from now on others stand on it and nobody writes to it. What it
    /// needs to be written to is still there afterwards, as the commit may not be stored.
    ///
    /// # Errors
    /// The snapshot stays active.
    fn commit(&self, snapshot: &Snapshot, directory: &Path) -> Result<Committed>;

    /// The commit is stored: takes away what only writing needed. `snapshot` is what it was before.
    ///
    /// # Errors
    /// Logged; what is left must be found by [`Driver::recover`].
    fn committed(&self, _: &Snapshot, _: &Path) -> Result<()> {
        Ok(())
    }

    /// The commit could not be stored, and the snapshot stays active: takes away what was made for
    /// it. [`Driver::update`] follows.
    ///
    /// # Errors
    /// Logged; the next commit must bear with what is left.
    fn uncommitted(&self, _: &Snapshot, _: &Path) -> Result<()> {
        Ok(())
    }

    /// Takes away what keeps the directory from being deleted or is faster gone than by walking:
    /// mounts, loop devices, subvolumes. The core then deletes what is there.
    ///
    /// # Errors
    /// The core tries again at the next clean-up.
    fn release(&self, remains: &Remains) -> Result<()>;

    /// The directory is gone: gives back what outlives it, such as limits in the file system.
    ///
    /// # Errors
    /// Logged; what is left must be found by [`Driver::recover`].
    fn forget(&self, remains: &Remains) -> Result<()>;

    /// Called once before the first request, with every snapshot there is and its directory, but
    /// for those whose directory a loss of power has taken. What has a directory and is not among
    /// them is released, deleted and forgotten next.
    ///
    /// # Errors
    /// The daemon does not start.
    fn recover(&self, snapshots: &[(Snapshot, PathBuf)]) -> Result<()>;
}
