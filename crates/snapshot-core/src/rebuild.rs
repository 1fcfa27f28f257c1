//! A lost store made anew from what lies beside the snapshots' contents. The daemon must not run.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    Key, Kind, Result, Snapshot, SnapshotId,
    directories::{Directories, Stage},
    store::{Sidecar, Store},
};

/// Numbers that are skipped when nothing says how far they were given: more than any node uses.
const IDS_SKIPPED: u64 = 1 << 20;

/// What was made of the directories.
#[derive(Debug)]
pub struct Rebuilt {
    /// Snapshots that are there again.
    pub restored: usize,
    /// What could not be told from its directory, and why; it is `snapshots/lost-NUMBER` now, for
    /// a person to look at and delete.
    pub set_aside: Vec<(SnapshotId, String)>,
    /// Where the old store is now.
    pub old_store: Option<PathBuf>,
}

/// Makes the store of a root anew.
///
/// # Errors
/// [`crate::Error::Precondition`] while a daemon has the root; what keeps the store from being
/// written.
pub fn rebuild(root: &Path) -> Result<Rebuilt> {
    let directories = Directories::open(root)?;
    let root = directories.root();
    let found = directories.list()?;
    let mut told = Told::default();
    for (stage, id) in &found {
        if *stage == Stage::Published {
            told.read(*id, &directories.path(*id))?;
        }
    }
    told.drop_orphans();
    for (id, _) in &told.unclear {
        directories.set_aside(*id)?;
    }
    let highest = found.iter().map(|(_, id)| id.0).max();
    let after = highest.map_or(0, |id| id.saturating_add(1));
    let begin = match Store::ids_noted(root)? {
        Some(end) => end.max(after),
        None => after.saturating_add(IDS_SKIPPED),
    };
    let snapshots: Vec<Snapshot> = told.snapshots.into_values().collect();
    let old_store = Store::put_aside(root)?;
    Store::make(root, &snapshots, begin)?;
    Ok(Rebuilt {
        restored: snapshots.len(),
        set_aside: told.unclear,
        old_store,
    })
}

/// What the sidecars say.
#[derive(Default)]
struct Told {
    snapshots: BTreeMap<Key, Snapshot>,
    unclear: Vec<(SnapshotId, String)>,
}

impl Told {
    fn read(&mut self, id: SnapshotId, directory: &Path) -> Result<()> {
        let snapshot = match Sidecar::read(directory)? {
            Sidecar::Whole(snapshot) if snapshot.id == id => *snapshot,
            Sidecar::Whole(other) => {
                let why = format!("its snapshot.json is that of number {}", other.id);
                self.unclear.push((id, why));
                return Ok(());
            }
            Sidecar::Missing => {
                self.unclear
                    .push((id, "it has no snapshot.json".to_owned()));
                return Ok(());
            }
            Sidecar::Torn(why) => {
                let why = format!("its snapshot.json cannot be read: {why}");
                self.unclear.push((id, why));
                return Ok(());
            }
        };
        let key = snapshot.info.name.clone();
        // A name is used again after its snapshot was removed: the later one has it now.
        let (kept, older) = match self.snapshots.remove(&key) {
            Some(other) if other.id > snapshot.id => (other, Some(snapshot)),
            Some(other) => (snapshot, Some(other)),
            None => (snapshot, None),
        };
        if let Some(older) = older {
            let why = format!("number {} has the same name {:?}", kept.id, key.as_str());
            self.unclear.push((older.id, why));
        }
        self.snapshots.insert(key, kept);
        Ok(())
    }

    /// Takes out what stands on nothing, until all stand.
    fn drop_orphans(&mut self) {
        loop {
            let stands = |snapshot: &Snapshot| match &snapshot.info.parent {
                None => true,
                Some(parent) => self
                    .snapshots
                    .get(parent)
                    .is_some_and(|parent| parent.info.kind == Kind::Committed),
            };
            let fallen = |(key, one): (&Key, &Snapshot)| (!stands(one)).then(|| key.clone());
            let fallen: Vec<Key> = self.snapshots.iter().filter_map(fallen).collect();
            if fallen.is_empty() {
                return;
            }
            for snapshot in fallen.iter().filter_map(|key| self.snapshots.remove(key)) {
                let parent = snapshot.info.parent.as_ref().map_or("", Key::as_str);
                let why = format!("its parent {parent:?} is not there");
                self.unclear.push((snapshot.id, why));
            }
        }
    }
}
