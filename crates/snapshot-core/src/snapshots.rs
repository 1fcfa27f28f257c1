//! The operations of containerd's snapshots service, over a store, directories and a driver. They
//! block; it must know neither gRPC nor what a driver makes.
//!
//! Order keeps both in step. A snapshot is made whole before its record is written, and its record
//! is gone before anything of it is: whenever the process ends, what has a record is whole, and
//! what has none is swept at the next start.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    Chain, Committed, Driver, Error, Filter, Info, Key, Kind, Labels, Mount, NewSnapshot, Note,
    Result, Snapshot, SnapshotId, Timestamp, Usage,
    directories::{Directories, Root, Stage},
    labels::{self, Field},
    listing::Listing,
    locks::{Locks, Names},
    ready_made::{self, ReadyMade},
    store::{Figures, Sidecar, Store, View, not_committed},
    sweeper::Sweeper,
};

mod commit;

pub use commit::CommitRequest;

/// The snapshots below one root.
#[derive(Debug)]
pub struct Snapshots {
    /// Ends first: it works in the directories.
    sweeper: Sweeper,
    store: Store,
    locks: Arc<Locks>,
    driver: Arc<dyn Driver>,
    /// Snapshots whose directories a loss of power has taken.
    lost: BTreeSet<SnapshotId>,
    /// Held until all else has ended.
    directories: Arc<Directories>,
}

/// What Prepare and View are asked for.
pub(crate) struct Creation {
    pub(crate) key: Key,
    pub(crate) parent: Option<Key>,
    pub(crate) labels: Labels,
}

/// A snapshot that is being made: buried unless it becomes one.
struct Unfinished<'a> {
    of: &'a Snapshots,
    id: SnapshotId,
    note: Option<Note>,
    /// None when it is finished.
    stage: Option<Stage>,
}

impl Snapshots {
    /// Opens a root, or makes it, lets the driver recover, and sweeps what has no record.
    ///
    /// # Errors
    /// [`Error::Precondition`] when another process has the root, or a later version wrote it;
    /// [`Error::Corrupt`]; those of [`Driver::recover`].
    pub fn open(root: &Path, driver: Arc<dyn Driver>) -> Result<Self> {
        Self::open_claimed(Root::claim(root)?, driver)
    }

    /// The same with a root that was claimed before.
    ///
    /// # Errors
    /// Those of [`Snapshots::open`].
    pub fn open_claimed(root: Root, driver: Arc<dyn Driver>) -> Result<Self> {
        let directories = Arc::new(Directories::of(root)?);
        let root = directories.root();
        let found = directories.list()?;
        if !Store::exists(root)? {
            refuse_if_store_is_lost(root, &found)?;
            Store::make(root, &[], 0)?;
        }
        let highest = found.iter().map(|(_, id)| id.0).max();
        let store = Store::open(root, highest.map_or(0, |id| id.saturating_add(1)))?;
        let found = Found::new(&store.view()?, &found, &directories)?;
        driver.recover(&found.whole)?;
        let sweeper = Sweeper::start(Arc::clone(&directories), Arc::clone(&driver))?;
        let this = Self {
            sweeper,
            store,
            locks: Arc::default(),
            driver,
            lost: found.lost,
            directories,
        };
        for (stage, id) in found.orphans {
            this.bury(id, stage);
        }
        let mut stale = this.store.stale_sidecars()?;
        stale.retain(|snapshot| !this.lost.contains(&snapshot.id));
        stale
            .iter()
            .for_each(|snapshot| this.rewrite_sidecar(snapshot));
        Ok(this)
    }

    /// Waits until nobody works on `changed`, and nobody changes `stood_on`, without a thread. What
    /// is done then takes what this gives.
    ///
    /// # Errors
    /// [`Error::Unavailable`] names one that was not given back in time.
    pub async fn names(
        &self,
        changed: &[&Key],
        stood_on: Option<&Key>,
        limit: Duration,
    ) -> Result<Names> {
        self.locks.wait(changed, stood_on, limit).await
    }

    /// As [`Snapshots::names`]; blocks.
    ///
    /// # Errors
    /// As [`Snapshots::names`].
    pub fn take_names(
        &self,
        changed: &[&Key],
        stood_on: Option<&Key>,
        limit: Duration,
    ) -> Result<Names> {
        self.locks.take(changed, stood_on, limit)
    }

    /// [`Snapshots::prepare`] and [`Snapshots::view`], by who holds the names.
    pub(crate) fn create(&self, names: &Names, kind: Kind, asked: Creation) -> Result<Vec<Mount>> {
        let Creation {
            key,
            parent,
            labels,
        } = asked;
        let (key, parent) = (&key, parent.as_ref());
        names.check(key);
        let labels = labels::checked(labels)?;
        // Their room may be what this one needs.
        self.sweeper.try_unburied();
        let view = self.store.view()?;
        if let Some(parent) = parent
            && view.get(parent)?.info.kind != Kind::Committed
        {
            return Err(not_committed(parent));
        }
        if view.find(key)?.is_some() {
            return Err(Error::AlreadyExists(key.to_string()));
        }
        let parents = self.parents(&view, parent)?;
        let ready = ready_made::look(&view, kind, &labels, parents.first())?;
        drop(view);
        let ready_name = match ready {
            ReadyMade::Exists => return Err(Error::AlreadyExists(key.to_string())),
            ReadyMade::Unknown(name) => Some(name),
            ReadyMade::NotAsked => None,
        };
        let asked = NewSnapshot {
            id: self.store.next_id()?,
            key,
            kind,
            parents: &parents,
            labels: &labels,
        };
        self.make_or_keep(&asked, ready_name)
    }

    /// Makes a snapshot, or keeps under that name what the driver has in its place.
    fn make_or_keep(&self, asked: &NewSnapshot<'_>, ready_name: Option<Key>) -> Result<Vec<Mount>> {
        let new = self.directories.make(asked.id)?;
        let mut unfinished = Unfinished {
            of: self,
            id: asked.id,
            note: None,
            stage: Some(Stage::New),
        };
        if let Some(name) = ready_name
            && let Some(ready) = self.driver.ready_made(asked, &new)?
        {
            self.keep_ready_made(unfinished, asked, name, ready)?;
            return Err(Error::AlreadyExists(asked.key.to_string()));
        }
        let note = self.driver.create(asked, &new)?;
        unfinished.note = Some(note.clone());
        let snapshot = snapshot(asked, asked.key.clone(), asked.kind, note, None);
        Sidecar::write(&new, &snapshot)?;
        let directory = self.directories.publish(asked.id)?;
        unfinished.stage = Some(Stage::Published);
        let mounts = self.driver.mounts(&Chain {
            snapshot: snapshot.clone(),
            directory,
            parents: self.with_directories(asked.parents.to_vec()),
        })?;
        let parent = asked.parents.first().map(|parent| parent.id);
        self.store.insert(snapshot, parent)?;
        unfinished.stage = None;
        Ok(mounts)
    }

    /// Records a layer that the driver has already, so that containerd finds it.
    fn keep_ready_made(
        &self,
        mut unfinished: Unfinished<'_>,
        asked: &NewSnapshot<'_>,
        name: Key,
        ready: Committed,
    ) -> Result<()> {
        unfinished.note = Some(ready.note.clone());
        let snapshot = snapshot(asked, name, Kind::Committed, ready.note, ready.usage);
        Sidecar::write(&self.directories.at(Stage::New, asked.id), &snapshot)?;
        self.directories.publish(asked.id)?;
        unfinished.stage = Some(Stage::Published);
        let parent = asked.parents.first().map(|parent| parent.id);
        match self.store.insert(snapshot, parent) {
            Ok(()) => unfinished.stage = None,
            // Another request for the same layer was quicker, and this one's directory goes.
            Err(Error::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// [`Snapshots::mounts`], by who holds the name.
    pub(crate) fn mounts_held(&self, names: &Names, key: &Key) -> Result<Vec<Mount>> {
        names.check(key);
        let view = self.store.view()?;
        let snapshot = view.get(key)?;
        if snapshot.info.kind == Kind::Committed {
            return Err(Error::Precondition(format!(
                "snapshot {:?} is committed, only active ones and views are mounted",
                key.as_str()
            )));
        }
        let directory = self.directory(&snapshot)?;
        let parents = self.parents(&view, snapshot.info.parent.as_ref())?;
        drop(view);
        self.driver.mounts(&Chain {
            snapshot,
            directory,
            parents: self.with_directories(parents),
        })
    }

    /// [`Snapshots::remove`], by who holds the name.
    pub(crate) fn remove_held(&self, names: &Names, key: &Key) -> Result<()> {
        names.check(key);
        let removed = self.store.remove(key)?;
        self.sweeper
            .bury(removed.id, Some(removed.note), Stage::Published);
        Ok(())
    }

    /// What containerd sees of a snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn stat(&self, key: &Key) -> Result<Info> {
        Ok(self.store.view()?.get(key)?.info)
    }

    /// [`Snapshots::update`], by who holds the name.
    ///
    /// # Errors
    /// As [`Snapshots::update`].
    pub fn update_held(
        &self,
        names: &Names,
        key: &Key,
        fields: &[Field],
        to: &Labels,
    ) -> Result<Info> {
        names.check(key);
        let before = self.store.view()?.get(key)?;
        let labels = labels::changed(before.info.labels.clone(), fields, to)?;
        let directory = self.directories.path(before.id);
        let is_lost = self.lost.contains(&before.id);
        if !is_lost {
            self.driver.update(&before, &directory, &labels)?;
        }
        let after = match self.store.relabel(key, labels.clone(), now()) {
            Ok(after) => after,
            Err(error) => {
                self.take_back(before, &directory, labels);
                return Err(error);
            }
        };
        if is_lost {
            return Ok(after.info);
        }
        if let Err(error) = self.driver.updated(&after, &directory) {
            let (old, then) = (before.info.labels.clone(), before.info.updated);
            match self.store.relabel(key, old, then) {
                Ok(_) => self.take_back(before, &directory, labels),
                // What is stored was asked for, and counts from the next start.
                Err(store) => {
                    let why = store.in_one_line();
                    tracing::warn!(%key, why, "the labels before could not be stored again");
                }
            }
            return Err(error);
        }
        self.rewrite_sidecar(&after);
        Ok(after.info)
    }

    /// The sidecar only serves to make a lost store anew, and a full quota may keep it from being
    /// written: the operation is done all the same. The next start tries again.
    fn rewrite_sidecar(&self, snapshot: &Snapshot) {
        let directory = self.directories.path(snapshot.id);
        match Sidecar::replace(&directory, snapshot) {
            Ok(()) => self.store.sidecar_is_current(snapshot.id),
            Err(error) => {
                let why = error.in_one_line();
                tracing::warn!(key = %snapshot.info.name, why, "a snapshot's sidecar is out of date");
            }
        }
    }

    /// The driver has changed what the store has not.
    fn take_back(&self, before: Snapshot, directory: &Path, labels: Labels) {
        let mut after = before;
        let old = std::mem::replace(&mut after.info.labels, labels);
        self.make_hold(&after, directory, &old);
    }

    /// After a change that was made and could not be stored.
    fn make_hold(&self, snapshot: &Snapshot, directory: &Path, labels: &Labels) {
        if let Err(error) = self.driver.update(snapshot, directory, labels) {
            let why = error.in_one_line();
            tracing::warn!(key = %snapshot.info.name, why, "the stored labels are not in force");
        }
    }

    /// What a filter chooses, by name, as all were at one moment, to be read page by page. Others
    /// change and look at snapshots meanwhile.
    ///
    /// # Errors
    /// What keeps the store from being read.
    pub fn listing(&self, filter: Filter) -> Result<Listing> {
        Ok(Listing::new(self.store.view()?, filter))
    }

    /// Gives each snapshot whole, by name, as all were at one moment, until `give` wants no more.
    ///
    /// # Errors
    /// What keeps the store from being read.
    pub fn each(&self, give: impl FnMut(Snapshot) -> ControlFlow<()>) -> Result<()> {
        self.store.view()?.each(give)
    }

    /// [`Snapshots::with`], by who holds the name.
    ///
    /// # Errors
    /// As [`Snapshots::with`].
    pub fn with_held<T>(
        &self,
        names: &Names,
        key: &Key,
        act: impl FnOnce(&Snapshot, &Path) -> Result<T>,
    ) -> Result<T> {
        names.check(key);
        let snapshot = self.store.view()?.get(key)?;
        let directory = self.directory(&snapshot)?;
        act(&snapshot, &directory)
    }

    /// What a snapshot holds: counted at commit, or by the driver now.
    ///
    /// # Errors
    /// [`Error::NotFound`]; those of the driver.
    pub fn usage(&self, key: &Key) -> Result<Usage> {
        let snapshot = self.store.view()?.get(key)?;
        if let Some(counted) = snapshot.usage {
            return Ok(counted);
        }
        let directory = self.directory(&snapshot)?;
        self.driver.usage(&snapshot, &directory).or_else(|error| {
            // It may have been removed or committed meanwhile, which is the better answer.
            match self.store.view()?.get(key)?.usage {
                Some(counted) => Ok(counted),
                None => Err(error),
            }
        })
    }

    /// Waits until what removed snapshots held is freed, but not longer than that.
    ///
    /// # Errors
    /// [`Error::Unavailable`] says how much is left and why.
    pub fn cleanup_within(&self, limit: Duration) -> Result<()> {
        self.sweeper.finish(limit)
    }

    /// How many snapshots there are.
    ///
    /// # Errors
    /// What keeps the store from being read.
    pub fn count(&self) -> Result<u64> {
        self.store.view()?.len()
    }

    /// How many removed snapshots still hold something.
    pub(crate) fn unswept(&self) -> usize {
        self.sweeper.left()
    }

    /// How many directories of removed snapshots could not be taken away, and why the first could
    /// not.
    #[must_use]
    pub fn left_over(&self) -> Option<(usize, String)> {
        self.sweeper.failed()
    }

    pub(crate) fn store_figures(&self) -> &Arc<Figures> {
        self.store.figures()
    }

    fn bury(&self, id: SnapshotId, from: Stage) {
        let note = match Sidecar::read(&self.directories.at(from, id)) {
            Ok(Sidecar::Whole(snapshot)) => Some(snapshot.note),
            // Without it the driver goes by the number.
            Ok(Sidecar::Missing | Sidecar::Torn(_)) | Err(_) => None,
        };
        self.sweeper.bury(id, note, from);
    }

    /// What stands below a snapshot with this parent, nearest first, all of it there.
    fn parents(&self, view: &View, parent: Option<&Key>) -> Result<Vec<Snapshot>> {
        if let Some(parent) = parent {
            // It was not looked at yet: one that is missing is no damage of the store.
            view.get(parent)?;
        }
        let parents = view.chain(parent)?;
        for parent in &parents {
            self.directory(parent)?;
        }
        Ok(parents)
    }

    fn directory(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        if self.lost.contains(&snapshot.id) {
            return Err(lost(snapshot));
        }
        Ok(self.directories.path(snapshot.id))
    }

    fn with_directories(&self, snapshots: Vec<Snapshot>) -> Vec<(Snapshot, PathBuf)> {
        let with_directory = |snapshot: Snapshot| {
            let directory = self.directories.path(snapshot.id);
            (snapshot, directory)
        };
        snapshots.into_iter().map(with_directory).collect()
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(stage) = self.stage {
            self.of.sweeper.bury(self.id, self.note.take(), stage);
        }
    }
}

/// A snapshot as it is asked for, from now on.
fn snapshot(
    asked: &NewSnapshot<'_>,
    name: Key,
    kind: Kind,
    note: Note,
    usage: Option<Usage>,
) -> Snapshot {
    let now = now();
    let parent = asked.parents.first();
    Snapshot {
        id: asked.id,
        info: Info {
            name,
            parent: parent.map(|parent| parent.info.name.clone()),
            kind,
            created: now,
            updated: now,
            labels: asked.labels.clone(),
        },
        note,
        usage,
    }
}

/// What is on the disk, held against what the store has.
struct Found {
    whole: Vec<(Snapshot, PathBuf)>,
    lost: BTreeSet<SnapshotId>,
    orphans: Vec<(Stage, SnapshotId)>,
}

impl Found {
    fn new(view: &View, found: &[(Stage, SnapshotId)], directories: &Directories) -> Result<Self> {
        let mut recorded = BTreeMap::new();
        view.each(|snapshot| {
            recorded.insert(snapshot.id, snapshot);
            ControlFlow::Continue(())
        })?;
        let mut this = Self {
            whole: Vec::with_capacity(recorded.len()),
            lost: BTreeSet::new(),
            orphans: Vec::new(),
        };
        for (stage, id) in found {
            match stage {
                Stage::Published => match recorded.remove(id) {
                    Some(snapshot) => this.whole.push((snapshot, directories.path(*id))),
                    None => this.orphans.push((*stage, *id)),
                },
                Stage::New | Stage::Buried => this.orphans.push((*stage, *id)),
                Stage::Lost => {
                    tracing::warn!(%id, "a snapshot set aside by a rebuild is still there");
                }
            }
        }
        for snapshot in recorded.into_values() {
            let why = lost(&snapshot).to_string();
            tracing::error!(key = %snapshot.info.name, why, "a snapshot's directory is gone");
            this.lost.insert(snapshot.id);
        }
        Ok(this)
    }
}

fn lost(snapshot: &Snapshot) -> Error {
    Error::Precondition(format!(
        "the directory of snapshot {:?} (number {}) is gone, by a loss of power or by hand: remove \
         the containers and images that use it, and pull them again",
        snapshot.info.name.as_str(),
        snapshot.id
    ))
}

/// An empty store beside full directories would have them swept.
fn refuse_if_store_is_lost(root: &Path, found: &[(Stage, SnapshotId)]) -> Result<()> {
    let published = |(stage, _): &&(Stage, SnapshotId)| *stage == Stage::Published;
    match found.iter().filter(published).count() {
        0 => Ok(()),
        count => Err(Error::Corrupt {
            path: root.join(crate::store::STORE_FILE),
            why: format!("it is missing, but there are {count} directories of snapshots"),
        }),
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = since.map_or(0, |since| since.as_nanos());
    Timestamp(i64::try_from(nanoseconds).unwrap_or(i64::MAX))
}
