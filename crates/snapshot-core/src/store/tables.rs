//! The tables, what may be written to them, and what is read. Each change looks at all it needs
//! before it writes anything, so that a refused one leaves the transaction it shares as it was.

use std::ops::{Bound, ControlFlow};

use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    WriteTransaction,
};

use super::{STORE_FILE, record, storage::failed};
use crate::{Error, Key, Kind, Labels, Result, Snapshot, SnapshotId, Timestamp};

/// Key to record.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");

/// Numbers of a parent and of what stands on it.
const CHILDREN: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("children");

/// Number to key.
const IDS: TableDefinition<'_, u64, &str> = TableDefinition::new("ids");

/// Numbers of snapshots whose sidecars may say something older.
const STALE: TableDefinition<'_, u64, ()> = TableDefinition::new("stale-sidecars");

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const META_SCHEMA: &str = "schema";

/// The lowest number that is not reserved.
pub(super) const META_IDS_END: &str = "ids-end";

/// The tables and records that this code reads and writes.
const SCHEMA: u64 = 1;

/// Longest chain of parents. overlayfs takes 500; a longer one in the store is a ring.
const PARENTS_MAX: usize = 4096;

type Snapshots<'t> = Table<'t, &'static str, &'static [u8]>;

/// The tables in a transaction that writes.
#[derive(Debug)]
pub(crate) struct Tables<'t> {
    snapshots: Snapshots<'t>,
    children: Table<'t, (u64, u64), ()>,
    ids: Table<'t, u64, &'static str>,
    stale: Table<'t, u64, ()>,
    meta: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self> {
        Ok(Self {
            snapshots: transaction.open_table(SNAPSHOTS).map_err(failed("open"))?,
            children: transaction.open_table(CHILDREN).map_err(failed("open"))?,
            ids: transaction.open_table(IDS).map_err(failed("open"))?,
            stale: transaction.open_table(STALE).map_err(failed("open"))?,
            meta: transaction.open_table(META).map_err(failed("open"))?,
        })
    }

    pub(super) fn set_schema(&mut self) -> Result<()> {
        self.set_meta(META_SCHEMA, SCHEMA)
    }

    pub(super) fn set_meta(&mut self, name: &str, value: u64) -> Result<()> {
        let set = self.meta.insert(name, value).map_err(failed("write"));
        set.map(drop)
    }

    /// Adds what is known to be right.
    pub(super) fn restore(
        &mut self,
        snapshot: &Snapshot,
        parent: Option<SnapshotId>,
    ) -> Result<()> {
        self.put(snapshot)?;
        self.link(parent, snapshot.id)
    }

    pub(super) fn insert(&mut self, snapshot: &Snapshot, parent: Option<SnapshotId>) -> Result<()> {
        let info = &snapshot.info;
        if let Some(key) = &info.parent {
            let found = self.existing(key)?;
            if found.info.kind != Kind::Committed || Some(found.id) != parent {
                return Err(not_committed(key));
            }
        }
        if self.get(&info.name)?.is_some() {
            return Err(Error::AlreadyExists(info.name.to_string()));
        }
        self.put(snapshot)?;
        self.link(parent, snapshot.id)
    }

    pub(super) fn remove(&mut self, key: &Key) -> Result<Snapshot> {
        let snapshot = self.existing(key)?;
        if has_child(&self.children, snapshot.id)? {
            return Err(Error::Precondition(format!(
                "cannot remove snapshot {key:?}: others stand on it",
                key = key.as_str()
            )));
        }
        let parent = self.parent_id(&snapshot)?;
        self.snapshots
            .remove(key.as_str())
            .map_err(failed("write"))?;
        self.ids.remove(snapshot.id.0).map_err(failed("write"))?;
        self.sidecar_is_current(snapshot.id)?;
        if let Some(parent) = parent {
            let link = (parent.0, snapshot.id.0);
            self.children.remove(link).map_err(failed("write"))?;
        }
        Ok(snapshot)
    }

    /// In containerd's order of refusals (core/snapshots/storage/bolt.go, CommitActive).
    pub(super) fn commit(&mut self, key: &Key, committed: &Snapshot) -> Result<()> {
        let active = self.existing(key)?;
        let name = &committed.info.name;
        if self.get(name)?.is_some() {
            return Err(Error::AlreadyExists(name.to_string()));
        }
        if active.info.kind != Kind::Active || active.id != committed.id {
            return Err(not_active(key));
        }
        let parent = match &committed.info.parent {
            Some(parent) => Some(self.committed_parent(parent)?),
            None => None,
        };
        self.snapshots
            .remove(key.as_str())
            .map_err(failed("write"))?;
        self.put(committed)?;
        self.sidecar_is_stale(committed.id)?;
        self.link(parent, committed.id)
    }

    pub(super) fn relabel(
        &mut self,
        key: &Key,
        labels: Labels,
        updated: Timestamp,
    ) -> Result<Snapshot> {
        let mut snapshot = self.existing(key)?;
        snapshot.info.labels = labels;
        snapshot.info.updated = updated;
        self.put(&snapshot)?;
        self.sidecar_is_stale(snapshot.id)?;
        Ok(snapshot)
    }

    fn sidecar_is_stale(&mut self, id: SnapshotId) -> Result<()> {
        let set = self.stale.insert(id.0, ()).map_err(failed("write"));
        set.map(drop)
    }

    pub(super) fn sidecar_is_current(&mut self, id: SnapshotId) -> Result<()> {
        let unset = self.stale.remove(id.0).map_err(failed("write"));
        unset.map(drop)
    }

    fn get(&self, key: &Key) -> Result<Option<Snapshot>> {
        get(&self.snapshots, key)
    }

    fn existing(&self, key: &Key) -> Result<Snapshot> {
        let found = self.get(key)?;
        found.ok_or_else(|| Error::NotFound(key.to_string()))
    }

    fn committed_parent(&self, key: &Key) -> Result<SnapshotId> {
        let parent = self.existing(key)?;
        if parent.info.kind != Kind::Committed {
            return Err(Error::Precondition(format!(
                "parent {:?} is not committed",
                key.as_str()
            )));
        }
        Ok(parent.id)
    }

    fn parent_id(&self, snapshot: &Snapshot) -> Result<Option<SnapshotId>> {
        let Some(key) = &snapshot.info.parent else {
            return Ok(None);
        };
        let parent = self.get(key)?.ok_or_else(|| lost_parent(key))?;
        Ok(Some(parent.id))
    }

    fn put(&mut self, snapshot: &Snapshot) -> Result<()> {
        let key = snapshot.info.name.as_str();
        let text = record::to_text(snapshot);
        self.snapshots
            .insert(key, text.as_slice())
            .map_err(failed("write"))?;
        self.ids
            .insert(snapshot.id.0, key)
            .map_err(failed("write"))?;
        Ok(())
    }

    fn link(&mut self, parent: Option<SnapshotId>, child: SnapshotId) -> Result<()> {
        let Some(parent) = parent else { return Ok(()) };
        self.children
            .insert((parent.0, child.0), ())
            .map_err(failed("write"))?;
        Ok(())
    }
}

pub(crate) fn not_active(key: &Key) -> Error {
    Error::Precondition(format!("snapshot {:?} is not active", key.as_str()))
}

pub(crate) fn not_committed(parent: &Key) -> Error {
    Error::Invalid(format!(
        "parent {:?} is not a committed snapshot",
        parent.as_str()
    ))
}

fn lost_parent(key: &Key) -> Error {
    damaged(format!("parent {:?} has no record", key.as_str()))
}

fn damaged(why: String) -> Error {
    let path = STORE_FILE.into();
    Error::Corrupt { path, why }
}

fn get(
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &Key,
) -> Result<Option<Snapshot>> {
    let found = snapshots.get(key.as_str()).map_err(failed("read"))?;
    found.map(|text| decode(text.value())).transpose()
}

fn decode(text: &[u8]) -> Result<Snapshot> {
    record::from_text(text).map_err(|why| damaged(format!("a record of a snapshot: {why}")))
}

fn has_child(children: &impl ReadableTable<(u64, u64), ()>, id: SnapshotId) -> Result<bool> {
    let mut range = children
        .range((id.0, 0)..=(id.0, u64::MAX))
        .map_err(failed("read"))?;
    Ok(range.next().transpose().map_err(failed("read"))?.is_some())
}

/// Refuses what another version wrote and gives the end of the reserved numbers.
pub(super) fn check(transaction: &ReadTransaction) -> Result<u64> {
    let meta = transaction.open_table(META).map_err(failed("open"))?;
    let read = |name| {
        let found = meta.get(name).map_err(failed("read"))?;
        Ok::<_, Error>(found.map(|value| value.value()))
    };
    match read(META_SCHEMA)? {
        Some(SCHEMA) => Ok(read(META_IDS_END)?.unwrap_or_default()),
        Some(other) => Err(Error::Precondition(format!(
            "{STORE_FILE} has schema {other}, this program knows schema {SCHEMA}: start the \
             version that wrote it, or a later one"
        ))),
        None => Err(damaged("it has no schema".to_owned())),
    }
}

/// Snapshots whose sidecars may say something older.
pub(super) fn stale(transaction: &ReadTransaction) -> Result<Vec<Snapshot>> {
    let stale = transaction.open_table(STALE).map_err(failed("open"))?;
    let ids = transaction.open_table(IDS).map_err(failed("open"))?;
    let view = View::new(transaction)?;
    let mut snapshots = Vec::new();
    for entry in stale.iter().map_err(failed("read"))? {
        let (id, ()) = entry
            .map(|(id, _)| (id.value(), ()))
            .map_err(failed("read"))?;
        let Some(key) = ids.get(id).map_err(failed("read"))? else {
            continue;
        };
        snapshots.push(view.get(&Key::new(key.value())?)?);
    }
    Ok(snapshots)
}

/// Everything as of one commit, however long it is looked at.
#[derive(Debug)]
pub(crate) struct View {
    snapshots: ReadOnlyTable<&'static str, &'static [u8]>,
}

impl View {
    pub(super) fn new(transaction: &ReadTransaction) -> Result<Self> {
        let snapshots = transaction.open_table(SNAPSHOTS).map_err(failed("open"))?;
        Ok(Self { snapshots })
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn get(&self, key: &Key) -> Result<Snapshot> {
        let found = get(&self.snapshots, key)?;
        found.ok_or_else(|| Error::NotFound(key.to_string()))
    }

    pub(crate) fn find(&self, key: &Key) -> Result<Option<Snapshot>> {
        get(&self.snapshots, key)
    }

    /// What is below a snapshot that has this parent, nearest first.
    pub(crate) fn chain(&self, parent: Option<&Key>) -> Result<Vec<Snapshot>> {
        let mut chain: Vec<Snapshot> = Vec::new();
        let mut next = parent.cloned();
        while let Some(key) = next.take() {
            if chain.len() == PARENTS_MAX {
                return Err(damaged(format!("more than {PARENTS_MAX} parents")));
            }
            let found = self.find(&key)?.ok_or_else(|| lost_parent(&key))?;
            next = found.info.parent.clone();
            chain.push(found);
        }
        Ok(chain)
    }

    /// How many snapshots there are.
    pub(crate) fn len(&self) -> Result<u64> {
        self.snapshots.len().map_err(failed("read"))
    }

    /// Looks at each snapshot, by name, until `look` has seen enough.
    pub(crate) fn each(&self, look: impl FnMut(Snapshot) -> ControlFlow<()>) -> Result<()> {
        self.each_after(None, look)
    }

    /// The same, for those after a name.
    pub(crate) fn each_after(
        &self,
        last: Option<&Key>,
        mut look: impl FnMut(Snapshot) -> ControlFlow<()>,
    ) -> Result<()> {
        let begin = last.map_or(Bound::Unbounded, |last| Bound::Excluded(last.as_str()));
        let rest = (begin, Bound::Unbounded);
        for entry in self.snapshots.range::<&str>(rest).map_err(failed("read"))? {
            let (_key, text) = entry.map_err(failed("read"))?;
            if look(decode(text.value())?).is_break() {
                break;
            }
        }
        Ok(())
    }
}
