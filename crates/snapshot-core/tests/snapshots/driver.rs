//! A driver that makes plain overlays, fails when it is told to, and waits where it is told to.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
};

use snapshot_core::{
    Chain, Committed, Driver, Error, Labels, Mount, NewSnapshot, Note, OverlayOptions, Owners,
    PlainDriver, Remains, Result, Snapshot, SnapshotId, TARGET_LABEL, Usage,
};

/// A call of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Create,
    /// After all was made.
    CreateEnd,
    Mounts,
    Update,
    /// After it was stored.
    Updated,
    Usage,
    Commit,
    Committed,
    Release,
    Forget,
    Recover,
}

/// Steps of making, changing and measuring: what a request can meet.
pub(crate) const STEPS: [Step; 7] = [
    Step::Create,
    Step::CreateEnd,
    Step::Mounts,
    Step::Update,
    Step::Updated,
    Step::Usage,
    Step::Commit,
];

#[derive(Debug)]
pub(crate) struct TestDriver {
    plain: PlainDriver,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    fails: BTreeSet<Step>,
    held: BTreeSet<Step>,
    waiting: Vec<Step>,
    /// Numbers and notes of what was released and of what was forgotten.
    released: Vec<(SnapshotId, Option<Note>)>,
    forgotten: Vec<SnapshotId>,
    recovered: Vec<(Snapshot, PathBuf)>,
    /// The labels that are in force, as the driver was told.
    labels: Vec<Labels>,
    /// Those that were stored, as it was told.
    settled: Vec<Labels>,
    counts_later: bool,
    /// Commits that were stored, and that were not.
    committed: Vec<SnapshotId>,
    uncommitted: Vec<SnapshotId>,
    /// Layers that are there before they are pulled.
    ready_made: BTreeSet<String>,
}

impl TestDriver {
    pub(crate) fn new() -> Arc<Self> {
        let options = OverlayOptions {
            index_off: true,
            user_xattr: false,
            volatile: false,
            owners: Owners::Kept,
            empty_lower: None,
        };
        Arc::new(Self {
            plain: PlainDriver::new(options),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// From now on a call fails.
    pub(crate) fn fail(&self, step: Step) {
        self.state.lock().unwrap().fails.insert(step);
    }

    pub(crate) fn work_again(&self) {
        self.state.lock().unwrap().fails.clear();
    }

    /// From now on a call waits.
    pub(crate) fn hold(&self, step: Step) {
        self.state.lock().unwrap().held.insert(step);
    }

    /// Returns when a call waits.
    pub(crate) fn wait_for(&self, step: Step) {
        let state = self.state.lock().unwrap();
        let waits = |state: &mut State| !state.waiting.contains(&step);
        drop(self.changed.wait_while(state, waits).unwrap());
    }

    /// Whether a call waits.
    pub(crate) fn waits_in(&self, step: Step) -> bool {
        self.state.lock().unwrap().waiting.contains(&step)
    }

    pub(crate) fn let_go(&self, step: Step) {
        self.state.lock().unwrap().held.remove(&step);
        self.changed.notify_all();
    }

    /// From now on that layer is there.
    pub(crate) fn has_ready_made(&self, target: &str) {
        let mut state = self.state.lock().unwrap();
        state.ready_made.insert(target.to_owned());
    }

    /// From now on a commit does not count.
    pub(crate) fn count_later(&self) {
        self.state.lock().unwrap().counts_later = true;
    }

    pub(crate) fn released(&self) -> Vec<(SnapshotId, Option<Note>)> {
        std::mem::take(&mut self.state.lock().unwrap().released)
    }

    pub(crate) fn forgotten(&self) -> Vec<SnapshotId> {
        std::mem::take(&mut self.state.lock().unwrap().forgotten)
    }

    pub(crate) fn recovered(&self) -> Vec<(Snapshot, PathBuf)> {
        std::mem::take(&mut self.state.lock().unwrap().recovered)
    }

    /// Commits that were stored, and that were not.
    pub(crate) fn ended(&self) -> (Vec<SnapshotId>, Vec<SnapshotId>) {
        let mut state = self.state.lock().unwrap();
        (
            std::mem::take(&mut state.committed),
            std::mem::take(&mut state.uncommitted),
        )
    }

    /// The labels that were stored, as the driver was told.
    pub(crate) fn settled(&self) -> Vec<Labels> {
        std::mem::take(&mut self.state.lock().unwrap().settled)
    }

    pub(crate) fn labels(&self) -> Vec<Labels> {
        std::mem::take(&mut self.state.lock().unwrap().labels)
    }

    fn step(&self, step: Step) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.held.contains(&step) {
            state.waiting.push(step);
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.held.contains(&step))
                .unwrap();
            state.waiting.retain(|waiting| *waiting != step);
        }
        if state.fails.contains(&step) {
            return Err(Error::Exhausted(format!("{step:?} fails in this test")));
        }
        Ok(())
    }
}

impl Driver for TestDriver {
    fn create(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Note> {
        self.step(Step::Create)?;
        self.plain.create(new, directory)?;
        self.step(Step::CreateEnd)?;
        Ok(Note(format!("made as {}", new.id)))
    }

    fn ready_made(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Option<Committed>> {
        let target = &new.labels[TARGET_LABEL];
        if !self.state.lock().unwrap().ready_made.contains(target) {
            return Ok(None);
        }
        self.plain.create(new, directory)?;
        Ok(Some(Committed {
            usage: None,
            note: Note(format!("ready-made {target}")),
        }))
    }

    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>> {
        self.step(Step::Mounts)?;
        self.plain.mounts(chain)
    }

    fn update(&self, snapshot: &Snapshot, directory: &Path, labels: &Labels) -> Result<()> {
        self.step(Step::Update)?;
        self.state.lock().unwrap().labels.push(labels.clone());
        self.plain.update(snapshot, directory, labels)
    }

    fn updated(&self, snapshot: &Snapshot, _: &Path) -> Result<()> {
        self.step(Step::Updated)?;
        self.state
            .lock()
            .unwrap()
            .settled
            .push(snapshot.info.labels.clone());
        Ok(())
    }

    fn usage(&self, snapshot: &Snapshot, directory: &Path) -> Result<Usage> {
        self.step(Step::Usage)?;
        self.plain.usage(snapshot, directory)
    }

    fn commit(&self, snapshot: &Snapshot, directory: &Path) -> Result<Committed> {
        self.step(Step::Commit)?;
        let committed = self.plain.commit(snapshot, directory)?;
        let counts_later = self.state.lock().unwrap().counts_later;
        Ok(Committed {
            usage: committed.usage.filter(|_| !counts_later),
            note: Note(format!("{}, committed", snapshot.note.0)),
        })
    }

    fn committed(&self, snapshot: &Snapshot, _: &Path) -> Result<()> {
        self.step(Step::Committed)?;
        self.state.lock().unwrap().committed.push(snapshot.id);
        Ok(())
    }

    fn uncommitted(&self, snapshot: &Snapshot, _: &Path) -> Result<()> {
        self.state.lock().unwrap().uncommitted.push(snapshot.id);
        Ok(())
    }

    fn release(&self, remains: &Remains) -> Result<()> {
        self.step(Step::Release)?;
        let released = (remains.id, remains.note.clone());
        self.state.lock().unwrap().released.push(released);
        self.plain.release(remains)
    }

    fn forget(&self, remains: &Remains) -> Result<()> {
        assert!(!remains.directory.exists(), "it is deleted before");
        self.state.lock().unwrap().forgotten.push(remains.id);
        self.step(Step::Forget)
    }

    fn recover(&self, snapshots: &[(Snapshot, PathBuf)]) -> Result<()> {
        self.step(Step::Recover)?;
        self.state.lock().unwrap().recovered = snapshots.to_vec();
        Ok(())
    }
}
