//! What the store keeps through refusals, crowds, crashes, losses of power and full disks.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::FileExt,
    sync::{Barrier, Mutex, atomic::Ordering},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::{
    prelude::{Strategy, any},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use redb::{StorageBackend, backends::InMemoryBackend};

use super::*;
use crate::{Info, Kind, Note, Usage};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn snapshot(id: SnapshotId, name: &str, kind: Kind, parent: Option<&str>) -> Snapshot {
    Snapshot {
        id,
        info: Info {
            name: key(name),
            parent: parent.map(key),
            kind,
            created: Timestamp(1),
            updated: Timestamp(1),
            labels: Labels::new(),
        },
        note: Note("note".to_owned()),
        usage: (kind == Kind::Committed).then(Usage::default),
    }
}

fn open(root: &Path) -> Store {
    if !Store::exists(root).unwrap() {
        Store::make(root, &[], 0).unwrap();
    }
    Store::open(root, 0).unwrap()
}

fn labels(value: &str) -> Labels {
    [("label".to_owned(), value.to_owned())].into()
}

impl Store {
    fn add(&self, name: &str) -> Result<SnapshotId> {
        let id = self.next_id()?;
        self.insert(snapshot(id, name, Kind::Active, None), None)?;
        Ok(id)
    }

    /// An active snapshot that is committed at once.
    fn add_committed(&self, name: &str, parent: Option<&str>) -> SnapshotId {
        let id = self.next_id().unwrap();
        let parent_id = parent.map(|name| self.view().unwrap().get(&key(name)).unwrap().id);
        let active = format!("{name} in the making");
        let new = snapshot(id, &active, Kind::Active, parent);
        self.insert(new, parent_id).unwrap();
        let committed = snapshot(id, name, Kind::Committed, parent);
        self.commit(&key(&active), committed).unwrap();
        id
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let each = self.view().unwrap().each(|one| {
            names.push(one.info.name.to_string());
            std::ops::ControlFlow::Continue(())
        });
        each.unwrap();
        names
    }
}

#[test]
fn refusals_are_those_of_containerd_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let base = store.add_committed("base", None);
    store.add("active").unwrap();
    let id = store.next_id().unwrap();
    let new = |name, parent| snapshot(id, name, Kind::Active, parent);
    let check = |outcome: Result<()>, expected: &str| {
        let refusal = outcome.unwrap_err();
        let text = format!("{refusal:?}");
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(store.names(), ["active", "base"]);
    };
    check(store.insert(new("active", None), None), "AlreadyExists");
    check(store.insert(new("base", None), None), "AlreadyExists");
    check(store.insert(new("x", Some("none")), None), "NotFound");
    check(store.insert(new("x", Some("active")), None), "Invalid");
    // The parent that was looked at has gone and another has its name.
    let other = Some(SnapshotId(base.0 + 77));
    check(store.insert(new("x", Some("base")), other), "Invalid");
    check(store.remove(&key("none")).map(drop), "NotFound");
    let commit = |key_, name, parent| {
        let active = store.view().unwrap().find(&key(key_)).unwrap();
        let id = active.map_or(id, |active| active.id);
        store.commit(&key(key_), snapshot(id, name, Kind::Committed, parent))
    };
    check(commit("none", "x", None), "NotFound");
    check(commit("active", "base", None), "AlreadyExists");
    check(commit("active", "active", None), "AlreadyExists");
    check(commit("base", "x", None), "Precondition");
    check(commit("active", "x", Some("none")), "NotFound");
    check(commit("active", "x", Some("active")), "Precondition");
    let relabel = store.relabel(&key("none"), Labels::new(), Timestamp(2));
    check(relabel.map(drop), "NotFound");
}

#[test]
fn a_parent_stays_while_others_stand_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let base = store.add_committed("base", None);
    let top = store.add_committed("top", Some("base"));
    let id = store.next_id().unwrap();
    store
        .insert(snapshot(id, "active", Kind::Active, Some("top")), Some(top))
        .unwrap();
    let chain = |parent| {
        let chain = store.view().unwrap().chain(Some(&key(parent))).unwrap();
        chain.iter().map(|one| one.id).collect::<Vec<_>>()
    };
    assert_eq!(chain("top"), [top, base]);
    for name in ["base", "top"] {
        let refusal = store.remove(&key(name)).unwrap_err().to_string();
        assert!(refusal.starts_with("cannot remove snapshot"), "{refusal}");
    }
    for name in ["active", "top", "base"] {
        assert_eq!(store.remove(&key(name)).unwrap().info.name, key(name));
    }
    assert_eq!(store.names(), Vec::<String>::new());
}

#[test]
fn a_rebase_at_commit_holds_the_new_parent() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.add_committed("base", None);
    let id = store.add("active").unwrap();
    let committed = snapshot(id, "top", Kind::Committed, Some("base"));
    store.commit(&key("active"), committed).unwrap();
    assert!(store.remove(&key("base")).is_err());
    store.remove(&key("top")).unwrap();
    store.remove(&key("base")).unwrap();
}

#[test]
fn a_view_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.add("a").unwrap();
    let view = store.view().unwrap();
    store
        .relabel(&key("a"), labels("new"), Timestamp(2))
        .unwrap();
    store.add("b").unwrap();
    assert_eq!(view.len().unwrap(), 1);
    assert_eq!(view.get(&key("a")).unwrap().info.labels, Labels::new());
    assert_eq!(
        store.view().unwrap().get(&key("a")).unwrap().info.labels,
        labels("new")
    );
}

#[test]
fn all_is_there_after_opening_again_and_no_number_comes_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut given = BTreeSet::new();
    for round in 0..4 {
        let store = open(folder.path());
        for number in 0..700 {
            // Most numbers are given up, as by requests that fail.
            assert!(given.insert(store.next_id().unwrap()));
            if number == 0 {
                given.insert(store.add(&format!("round {round}")).unwrap());
            }
        }
        assert_eq!(store.names().len(), round + 1);
        if round == 2 {
            // As after a kill: what is on the disk now, while the store is open.
            for file in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
                let copy = folder
                    .path()
                    .join(format!("{}.copy", file.file_name().display()));
                fs::copy(file.path(), copy).unwrap();
            }
            given.insert(store.add("lost by going back to the copy").unwrap());
            drop(store);
            for name in [STORE_FILE, "ids"] {
                let copy = folder.path().join(format!("{name}.copy"));
                fs::rename(copy, folder.path().join(name)).unwrap();
            }
        }
    }
    let names = (0..4)
        .map(|round| format!("round {round}"))
        .collect::<Vec<_>>();
    assert_eq!(open(folder.path()).names(), names);
    assert!(given.first().unwrap().0 >= 1, "0 stands for no snapshot");
}

#[test]
fn numbers_do_not_begin_anew_when_store_or_note_is_older() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).next_id().unwrap();
    fs::remove_file(folder.path().join(STORE_FILE)).unwrap();
    let by_note = open(folder.path()).next_id().unwrap();
    assert!(by_note > first);
    fs::write(folder.path().join("ids"), "torn").unwrap();
    let by_store = open(folder.path()).next_id().unwrap();
    assert!(by_store > by_note);
    drop(fs::remove_file(folder.path().join("ids")));
    let by_caller = Store::open(folder.path(), 99_999)
        .unwrap()
        .next_id()
        .unwrap();
    assert_eq!(by_caller, SnapshotId(99_999));
}

#[test]
fn changes_cost_a_sync_each_alone_and_share_one_in_a_crowd() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let syncs = || store.figures().syncs.load(Ordering::Relaxed);
    // The first writes of a store mark it open and make the file longer.
    for number in 0..200 {
        store.add(&format!("first {number}")).unwrap();
    }
    let cost = |change: &dyn Fn()| {
        let before = syncs();
        change();
        syncs() - before
    };
    assert!(cost(&|| assert!(store.add("one").is_ok())) <= 1);
    assert!(cost(&|| assert!(store.remove(&key("one")).is_ok())) <= 1);

    let crowd = 64;
    let begin = Barrier::new(crowd);
    let cost = cost(&|| {
        std::thread::scope(|scope| {
            for number in 0..crowd {
                let (store, begin) = (&store, &begin);
                scope.spawn(move || {
                    begin.wait();
                    store.add(&format!("crowd {number}")).unwrap();
                    let refusal = store.add(&format!("crowd {number}")).unwrap_err();
                    assert!(matches!(refusal, Error::AlreadyExists(_)));
                });
            }
        });
    });
    assert!(cost < crowd as u64, "{cost} syncs for {crowd} changes");
    assert_eq!(store.names().len(), 200 + crowd);
}

#[test]
fn only_one_of_a_crowd_gets_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let winners = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                if let Ok(id) = store.add("same") {
                    winners.lock().unwrap().push(id);
                }
            });
        }
    });
    let winners = winners.into_inner().unwrap();
    assert_eq!(
        winners,
        [store.view().unwrap().get(&key("same")).unwrap().id]
    );
}

#[test]
fn stores_of_others_and_torn_ones_are_refused_in_one_line() {
    let refusal = |root: &Path| {
        let refusal = Store::open(root, 0).unwrap_err().in_one_line();
        assert!(!refusal.contains('\n'));
        refusal
    };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let path = root.join(STORE_FILE);

    fs::write(&path, "no store at all").unwrap();
    assert!(
        refusal(root).contains("doctor --rebuild"),
        "{}",
        refusal(root)
    );
    fs::write(&path, vec![0; 100_000]).unwrap();
    assert!(
        refusal(root).contains("doctor --rebuild"),
        "{}",
        refusal(root)
    );

    // redb's, but none of ours.
    fs::remove_file(&path).unwrap();
    drop(redb::Database::create(&path).unwrap());
    assert!(
        refusal(root).contains("doctor --rebuild"),
        "{}",
        refusal(root)
    );

    fs::remove_file(&path).unwrap();
    let storage = Storage::make(&path).unwrap();
    storage
        .write(|tables| tables.set_meta("schema", 7))
        .unwrap();
    drop(storage);
    let expected = "store.redb has schema 7, this program knows schema 1: start the version that \
                    wrote it, or a later one";
    assert_eq!(refusal(root), expected);

    // Whole pages that are no pages any more, after a start that trusts the file.
    fs::remove_file(&path).unwrap();
    let store = open(root);
    for number in 0..500 {
        store.add(&format!("snapshot {number}")).unwrap();
    }
    drop(store);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(&vec![0xa5; usize::try_from(length).unwrap() - 8192], 8192)
        .unwrap();
    drop(file);
    assert!(
        refusal(root).contains("doctor --rebuild"),
        "{}",
        refusal(root)
    );
}

#[test]
fn a_store_is_put_aside_and_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    assert_eq!(Store::put_aside(root).unwrap(), None);
    for number in 0..2 {
        drop(open(root));
        let aside = root.join(format!("store.redb.broken-{number}"));
        assert_eq!(Store::put_aside(root).unwrap(), Some(aside.clone()));
        assert!(aside.exists() && !Store::exists(root).unwrap());
    }
    // What a process left that ended while it made one.
    fs::write(root.join("store.redb.new"), "half").unwrap();
    let base = snapshot(SnapshotId(8), "base", Kind::Committed, None);
    let top = snapshot(SnapshotId(5), "top", Kind::Active, Some("base"));
    Store::make(root, &[top, base], 40).unwrap();
    let store = open(root);
    assert_eq!(store.names(), ["base", "top"]);
    assert!(store.next_id().unwrap() >= SnapshotId(40));
    assert!(store.remove(&key("base")).is_err());
    store.remove(&key("top")).unwrap();
    store.remove(&key("base")).unwrap();
}

/// A small file system that goes with it.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let size = Some("size=1m");
        mount(
            Some("small"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            size,
        )
        .unwrap();
        Self(folder)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_got_over() {
    let small = Small::new();
    let root = small.0.path();
    let store = open(root);
    store.add("before").unwrap();
    let filler = root.join("filler");
    let full = fs::write(&filler, vec![1; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    // New pages are taken until there are none.
    let refusal = (0..)
        .find_map(|number| {
            let long = labels(&"x".repeat(4000));
            let name = format!("number {number}");
            let added = store.add(&name);
            added
                .and_then(|_| store.relabel(&key(&name), long, Timestamp(2)))
                .err()
        })
        .unwrap();
    assert!(matches!(refusal, Error::Exhausted(_)), "{refusal:?}");
    assert!(
        refusal.in_one_line().contains("No space left"),
        "{}",
        refusal.in_one_line()
    );
    // What is there can be read while there is no room.
    assert!(store.names().contains(&"before".to_owned()));
    fs::remove_file(&filler).unwrap();
    store.add("after").unwrap();
    let names = store.names();
    assert!(names.contains(&"before".to_owned()) && names.contains(&"after".to_owned()));
    drop(store);
    assert_eq!(open(root).names(), names);
}

/// A disk that remembers what was not synced.
#[derive(Debug, Default)]
struct Disk {
    now: InMemoryBackend,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    synced: Vec<u8>,
    since: Vec<Write>,
    /// Changes that were answered as being on the disk.
    promised: usize,
    /// A promise does not hold before the sync it waited for.
    crashes: Vec<Crash>,
    seed: u64,
}

#[derive(Clone, Debug)]
enum Write {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

/// What a loss of power may have left: any of the later writes on top of the synced ones.
#[derive(Debug)]
struct Crash {
    synced: Vec<u8>,
    since: Vec<Write>,
    promised: usize,
}

impl Crash {
    fn image(&self, choices: &[bool]) -> Vec<u8> {
        let mut image = self.synced.clone();
        for (write, _) in self
            .since
            .iter()
            .zip(choices.iter().cycle())
            .filter(|(_, kept)| **kept)
        {
            match write {
                Write::Length(length) => image.resize(*length, 0),
                Write::Bytes(offset, bytes) => {
                    let end = offset + bytes.len();
                    image.resize(image.len().max(end), 0);
                    image[*offset..end].copy_from_slice(bytes);
                }
            }
        }
        image
    }
}

impl Disk {
    fn note(&self, write: Write) {
        let mut state = self.state.lock().unwrap();
        state.since.push(write);
        state.seed = state
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if state.seed >> 58 == 0 {
            let crash = Crash {
                synced: state.synced.clone(),
                since: state.since.clone(),
                promised: state.promised,
            };
            state.crashes.push(crash);
        }
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

#[derive(Debug, Clone)]
struct SharedDisk(Arc<Disk>);

impl StorageBackend for SharedDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.now.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.now.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.now.set_len(len)?;
        self.0.note(Write::Length(size(len)));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut all = vec![0; size(self.0.now.len()?)];
        self.0.now.read(0, &mut all)?;
        let mut state = self.0.state.lock().unwrap();
        state.synced = all;
        state.since.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.now.write(offset, data)?;
        self.0.note(Write::Bytes(size(offset), data.to_vec()));
        Ok(())
    }
}

#[test]
fn a_loss_of_power_at_any_write_keeps_what_was_promised() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::default());
    let storage = |disk: &Arc<Disk>| {
        let shared: Arc<dyn StorageBackend> = Arc::new(SharedDisk(Arc::clone(disk)));
        Storage::with(Path::new("disk"), shared).unwrap()
    };
    fill(&storage(&disk), &[], 0).unwrap();
    disk.state.lock().unwrap().crashes.clear();
    let store = Store::over(storage(&disk), folder.path(), 0).unwrap();
    // Each change makes the next promise: snapshot N is there, labels of N - 1 may be.
    for number in 1..=300 {
        let id = store.next_id().unwrap();
        let new = snapshot(id, &format!("{number:04}"), Kind::Active, None);
        store.insert(new, None).unwrap();
        disk.state.lock().unwrap().promised = number;
        let name = key(&format!("{number:04}"));
        store
            .relabel(&name, labels(&"x".repeat(number * 7 % 900)), Timestamp(2))
            .unwrap();
    }
    drop(store);
    let crashes = std::mem::take(&mut disk.state.lock().unwrap().crashes);
    assert!(crashes.len() > 50, "{} crashes", crashes.len());
    let mut runner = TestRunner::deterministic();
    let choices = proptest::collection::vec(any::<bool>(), 7..97);
    for crash in crashes {
        let image = crash.image(&choices.new_tree(&mut runner).unwrap().current());
        let backend = InMemoryBackend::new();
        backend.set_len(image.len() as u64).unwrap();
        backend.write(0, &image).unwrap();
        let storage = Storage::with(Path::new("image"), Arc::new(backend)).unwrap();
        storage.check().unwrap();
        let store = Store::over(storage, folder.path(), 0).unwrap();
        let names = store.names();
        assert!(
            names.len() >= crash.promised,
            "{} of {}",
            names.len(),
            crash.promised
        );
        store.add("goes on").unwrap();
    }
}
