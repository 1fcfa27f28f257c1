//! Commit: an active snapshot is closed and gets another name, for others to stand on.
//!
//! ```text
//!  checks -> Driver::commit -> store (one sync) -> the outcome is told
//!                        |       |                   `-> sidecar, Driver::committed
//!                        |       `- not stored -> Driver::uncommitted, update -> the error is told
//!                        `- nobody waits any more: as when it could not be stored
//! ```
//! Who does not wait has been told that it failed, or has gone: containerd then takes back what it
//! noted, and later removes, as garbage, a snapshot whose name it never heard of.
//!
//! containerd waits for Commit inside a transaction of its own, so nothing is waited for that need
//! not be on the disk. What follows the outcome is found by the next start if the process ends
//! before; until it is done, the names stay taken, so that nobody who changes the snapshot or
//! stands on it meets it half done.

use std::path::PathBuf;

use tokio::sync::oneshot;

use super::{Snapshots, now};
use crate::{
    Error, Info, Key, Kind, Labels, Result, Snapshot, labels, locks::Names, store::not_active,
};

/// What Commit is asked for.
#[derive(Debug)]
pub struct CommitRequest {
    /// The committed snapshot.
    pub name: Key,
    /// The active one, whose place it takes.
    pub key: Key,
    /// A parent for an active snapshot that has none: a rebase (containerd ≥ 2.2).
    pub parent: Option<Key>,
    /// In the place of the active one's labels.
    pub labels: Labels,
}

/// Who asked for a commit.
pub(crate) trait Asker {
    /// Whether the outcome still counts for somebody.
    fn waits(&self) -> bool;

    /// Is told once.
    fn tell(self, outcome: Result<()>);
}

/// Somebody on a thread of this process.
impl<F: FnOnce(Result<()>)> Asker for F {
    fn waits(&self) -> bool {
        true
    }

    fn tell(self, outcome: Result<()>) {
        self(outcome);
    }
}

/// A request.
impl Asker for oneshot::Sender<Result<()>> {
    fn waits(&self) -> bool {
        !self.is_closed()
    }

    fn tell(self, outcome: Result<()>) {
        // It may leave at the last moment.
        drop(self.send(outcome));
    }
}

/// A commit that only has to be stored.
struct Closed {
    active: Snapshot,
    directory: PathBuf,
    committed: Snapshot,
}

impl Snapshots {
    /// [`Snapshots::commit_and_tell`], by who holds the names.
    pub(crate) fn commit_held(&self, names: &Names, request: CommitRequest, asker: impl Asker) {
        names.check(&request.key);
        names.check(&request.name);
        let closed = match self.close(request) {
            Ok(closed) => closed,
            Err(error) => return asker.tell(Err(error)),
        };
        let stored = if asker.waits() {
            let key = &closed.active.info.name;
            self.store.commit(key, closed.committed.clone())
        } else {
            Err(abandoned(&closed))
        };
        match stored {
            Ok(()) => {
                asker.tell(Ok(()));
                self.tidy(&closed);
            }
            Err(error) => {
                self.open_again(&closed);
                asker.tell(Err(error));
            }
        }
    }

    /// Checks all that can be checked and has the driver close it.
    fn close(&self, request: CommitRequest) -> Result<Closed> {
        let CommitRequest {
            name,
            key,
            parent,
            labels,
        } = request;
        let labels = labels::checked(labels)?;
        let view = self.store.view()?;
        let active = view.get(&key)?;
        if view.find(&name)?.is_some() {
            return Err(Error::AlreadyExists(name.to_string()));
        }
        if active.info.kind != Kind::Active {
            return Err(not_active(&key));
        }
        let parent = parent_of(&active, parent)?;
        let parents = self.parents(&view, parent.as_ref())?;
        if let Some(parent) = parents.first()
            && parent.info.kind != Kind::Committed
        {
            return Err(Error::Precondition(format!(
                "parent {:?} is not committed",
                parent.info.name.as_str()
            )));
        }
        let directory = self.directory(&active)?;
        drop(view);

        let closed = self.driver.commit(&active, &directory)?;
        let now = now();
        let committed = Snapshot {
            id: active.id,
            info: Info {
                name,
                parent,
                kind: Kind::Committed,
                created: now,
                updated: now,
                labels,
            },
            note: closed.note,
            usage: closed.usage,
        };
        Ok(Closed {
            active,
            directory,
            committed,
        })
    }

    /// What is left to do for a commit that was stored.
    fn tidy(&self, closed: &Closed) {
        self.rewrite_sidecar(&closed.committed);
        let done = self.driver.committed(&closed.active, &closed.directory);
        log_left(&closed.active, done);
    }

    /// A commit could not be stored.
    fn open_again(&self, closed: &Closed) {
        let Closed {
            active, directory, ..
        } = closed;
        // When the store has it all the same, but not on the disk, nothing may go.
        let is_active = matches!(
            self.store.view().and_then(|view| view.find(&active.info.name)),
            Ok(Some(snapshot)) if snapshot.id == active.id
        );
        if !is_active {
            return;
        }
        let done = self.driver.uncommitted(active, directory);
        self.make_hold(active, directory, &active.info.labels);
        log_left(active, done);
    }
}

/// The parent that a committed snapshot gets.
fn parent_of(active: &Snapshot, asked: Option<Key>) -> Result<Option<Key>> {
    match (&active.info.parent, asked) {
        (Some(has), Some(asked)) if *has != asked => Err(Error::Invalid(format!(
            "cannot change the parent of snapshot {:?} from {:?} to {:?}: only one without a parent \
             gets one at commit",
            active.info.name.as_str(),
            has.as_str(),
            asked.as_str()
        ))),
        (Some(has), _) => Ok(Some(has.clone())),
        (None, asked) => Ok(asked),
    }
}

fn abandoned(closed: &Closed) -> Error {
    let key = &closed.active.info.name;
    tracing::warn!(%key, "nobody waits for its commit any more: it stays as it was");
    Error::Unavailable(format!("nobody waited for the commit of {key} any more"))
}

fn log_left(active: &Snapshot, done: Result<()>) {
    if let Err(error) = done {
        let (key, why) = (&active.info.name, error.in_one_line());
        tracing::warn!(%key, why, "what a commit does not need could not be taken away");
    }
}
