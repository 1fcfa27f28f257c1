//! The operations for those who may block: each waits for its names, and is done. It must decide
//! nothing. Each may also fail with [`crate::Error::Unavailable`], when a name is not given back.

use std::{path::Path, time::Duration};

use crate::{
    CommitRequest, Field, Info, Key, Kind, Labels, Mount, Result, Snapshot, Snapshots,
    locks::Names, snapshots::Creation,
};

/// Whoever has a name for so long hangs.
const WAIT: Duration = Duration::from_secs(60);

/// Whatever is deleted for so long hangs.
const SWEEP: Duration = Duration::from_secs(600);

impl Snapshots {
    /// Makes a writable snapshot and says how it is mounted.
    ///
    /// # Errors
    /// [`crate::Error::AlreadyExists`]; [`crate::Error::NotFound`] for the parent;
    /// [`crate::Error::Invalid`] for a parent that is not committed, and for labels; those of the
    /// driver.
    pub fn prepare(&self, key: &Key, parent: Option<&Key>, labels: Labels) -> Result<Vec<Mount>> {
        self.make(Kind::Active, key, parent, labels)
    }

    /// Makes a read-only snapshot and says how it is mounted.
    ///
    /// # Errors
    /// As for [`Snapshots::prepare`].
    pub fn view(&self, key: &Key, parent: Option<&Key>, labels: Labels) -> Result<Vec<Mount>> {
        self.make(Kind::View, key, parent, labels)
    }

    fn make(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Key>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let names = self.hold(&[key], parent)?;
        let asked = Creation {
            key: key.clone(),
            parent: parent.cloned(),
            labels,
        };
        self.create(&names, kind, asked)
    }

    /// Says how an active snapshot or a view is mounted.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; [`crate::Error::Precondition`] for a committed one; those of the
    /// driver.
    pub fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        self.mounts_held(&self.hold(&[key], None)?, key)
    }

    /// Closes an active snapshot and gives it another name, for others to stand on.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for the active one and for the parent;
    /// [`crate::Error::AlreadyExists`]; [`crate::Error::Precondition`] for one that is not active,
    /// and for a parent that is not committed; [`crate::Error::Invalid`] for another parent than the
    /// one it has; those of the driver.
    pub fn commit(&self, request: CommitRequest) -> Result<()> {
        let mut outcome = Ok(());
        self.commit_and_tell(request, |told| outcome = told);
        outcome
    }

    /// As [`Snapshots::commit`], but tells the outcome as soon as it is certain: a commit that was
    /// stored outlives a loss of power then, and some of its tidying up is still to do.
    pub fn commit_and_tell(&self, request: CommitRequest, tell: impl FnOnce(Result<()>)) {
        match self.hold(&[&request.key, &request.name], request.parent.as_ref()) {
            Ok(names) => self.commit_held(&names, request, tell),
            Err(error) => tell(Err(error)),
        }
    }

    /// Takes a snapshot away. What it held is freed behind the answer.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; [`crate::Error::Precondition`] while others stand on it.
    pub fn remove(&self, key: &Key) -> Result<()> {
        self.remove_held(&self.hold(&[key], None)?, key)
    }

    /// Changes labels: those that `fields` name, or all when it is empty.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; [`crate::Error::Invalid`] for labels; those of the driver.
    pub fn update(&self, key: &Key, fields: &[Field], to: &Labels) -> Result<Info> {
        self.update_held(&self.hold(&[key], None)?, key, fields, to)
    }

    /// Runs `act` on a snapshot and its directory while nothing else changes it.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; those of `act`.
    pub fn with<T>(&self, key: &Key, act: impl FnOnce(&Snapshot, &Path) -> Result<T>) -> Result<T> {
        self.with_held(&self.hold(&[key], None)?, key, act)
    }

    /// Waits until what removed snapshots held is freed.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] says how much is left and why.
    pub fn cleanup(&self) -> Result<()> {
        self.cleanup_within(SWEEP)
    }

    fn hold(&self, changed: &[&Key], stood_on: Option<&Key>) -> Result<Names> {
        self.take_names(changed, stood_on, WAIT)
    }
}
