//! The snapshots that can be written to, with what was decided for them: an index in memory, so
//! that events and metrics read no store. It decides nothing.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use snapshot_core::{Key, SnapshotId};
use tokio::sync::watch;

use crate::{
    backend::{Held, Record},
    limit::{Group, Limit},
};

/// One of them.
#[derive(Debug, Clone)]
pub struct Writable {
    /// Its name.
    pub key: Key,
    /// Its directory.
    pub directory: PathBuf,
    /// What its back end keeps with it.
    pub record: Record,
    /// What was decided for it alone.
    pub decided: Limit,
    /// What is in force unless it is lifted: the same, but in a group what its members share.
    pub limit: Limit,
    /// Whether the back end has not yet been told that it can count: it may have grown, say.
    pub unsettled: bool,
    /// Until when the limit is lifted.
    pub lifted_until: Option<SystemTime>,
}

/// All of them.
#[derive(Debug)]
pub struct Writables {
    known: RwLock<BTreeMap<SnapshotId, Arc<Writable>>>,
    changes: watch::Sender<u64>,
}

impl Default for Writables {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Writable {
    /// One with the limit that was decided for it.
    #[must_use]
    pub fn new(key: Key, directory: PathBuf, record: Record, limit: Limit) -> Self {
        Self {
            key,
            directory,
            record,
            decided: limit.clone(),
            limit,
            unsettled: false,
            lifted_until: None,
        }
    }

    /// As back ends want it.
    #[must_use]
    pub fn held(&self, id: SnapshotId) -> Held<'_> {
        Held {
            id,
            key: &self.key,
            directory: &self.directory,
            record: &self.record,
        }
    }

    /// Whether there is a limit to be near to.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limit.bytes.is_some() || self.limit.inodes.is_some()
    }
}

impl Writables {
    /// Puts one in, or in the place of what was known of it.
    pub fn put(&self, id: SnapshotId, writable: Writable) {
        self.change(|known| known.insert(id, Arc::new(writable)));
    }

    /// Changes what is known of one, if anything is.
    pub fn change_one(&self, id: SnapshotId, change: impl FnOnce(&mut Writable)) {
        self.change(|known| known.get_mut(&id).map(|one| change(Arc::make_mut(one))));
    }

    /// Notes for all members of a group what they share from now on.
    pub fn share(&self, group: &Group, limit: &Limit) {
        self.change(|known| {
            let of_group = |one: &&mut Arc<Writable>| one.decided.group.as_ref() == Some(group);
            for one in known.values_mut().filter(of_group) {
                let one = Arc::make_mut(one);
                one.limit = Limit {
                    warn: one.decided.warn.clone(),
                    ..limit.clone()
                };
            }
        });
    }

    /// Takes one out.
    pub fn remove(&self, id: SnapshotId) {
        self.change(|known| known.remove(&id));
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<SnapshotId, Arc<Writable>>) -> T) {
        // Each change is one insertion or removal: a panic elsewhere leaves the map whole.
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: SnapshotId) -> Option<Arc<Writable>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).cloned()
    }

    /// Those for which `wanted` holds.
    #[must_use]
    pub fn filter(&self, wanted: impl Fn(&Writable) -> bool) -> Vec<(SnapshotId, Arc<Writable>)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = known.iter().filter(|(_, one)| wanted(one));
        wanted.map(|(id, one)| (*id, Arc::clone(one))).collect()
    }

    /// Changes when something was put in, changed or taken out.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writable(record: Record) -> Writable {
        let key = Key::new("ns/1/web").unwrap();
        Writable::new(
            key,
            PathBuf::from("/r/snapshots/1"),
            record,
            Limit::counted(),
        )
    }

    #[test]
    fn those_that_are_wanted_are_found() {
        let writables = Writables::default();
        let project = |project| Record::Prjquota {
            project,
            group: None,
        };
        writables.put(SnapshotId(1), writable(project(7)));
        writables.put(SnapshotId(2), writable(project(8)));
        writables.put(SnapshotId(4), writable(Record::Plain));
        let found = || {
            let found = writables.filter(|one| one.record != Record::Plain);
            found.into_iter().map(|(id, _)| id.0).collect::<Vec<_>>()
        };
        assert_eq!(found(), [1, 2]);
        writables.remove(SnapshotId(1));
        assert_eq!(found(), [2]);
    }

    #[test]
    fn every_change_is_told() {
        let writables = Writables::default();
        let mut changes = writables.changes();
        assert!(!changes.has_changed().unwrap());
        writables.put(SnapshotId(1), writable(Record::Plain));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        writables.change_one(SnapshotId(1), |one| {
            one.lifted_until = Some(SystemTime::UNIX_EPOCH);
        });
        assert!(changes.has_changed().unwrap());
        assert!(writables.get(SnapshotId(1)).unwrap().lifted_until.is_some());
        writables.change_one(SnapshotId(2), |_| panic!("it is not known"));
    }
}
