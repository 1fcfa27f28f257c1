//! A process that makes, changes, commits and removes snapshots until it is killed, and what must
//! be true of the disk afterwards, wherever that was.
//!
//! A published directory with its sidecar is a snapshot, as in the core; all else is buried.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use snapshot_core::{Note, SnapshotId};
use snapshotter_quota::{
    backend::{Backend, Held, Kept, Left, Plain, Record, Report, Resize},
    limit::Limit,
};
use sys::{
    Signal, Spawn,
    btrfs::{self, QgroupId},
};

use super::store::{KEY, bytes, in_group};

/// Set in the process that is killed: its root and its seed.
const ROOT: &str = "KILLED_ROOT";
const SEED: &str = "KILLED_SEED";

/// Steps after which the process is killed at the latest.
const STEPS_MAX: u64 = 60;

/// More than any process lives to make.
const IDS_PER_PROCESS: u64 = 1000;

/// What may be asked of a back end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The smallest limit.
    pub(crate) bytes: u64,
    /// Whether some snapshots are in a group.
    pub(crate) groups: bool,
}

/// One test of this kind.
#[derive(Debug)]
pub(crate) struct Killing<F> {
    /// The name of the test, which is run again in the process that is killed.
    pub(crate) name: &'static str,
    /// What is asked for.
    pub(crate) sizes: Sizes,
    /// How often.
    pub(crate) rounds: u64,
    /// Opens the back end of a root.
    pub(crate) open: F,
}

impl<B: Backend, F: Fn(&Path) -> B> Killing<F> {
    /// Makes the disk, kills a process again and again, and puts things right each time. In the
    /// process that is killed, it does what it is there for instead.
    pub(crate) fn survive<D: AsRef<Path>>(&self, disk: impl FnOnce() -> D) {
        if let (Some(root), Some(seed)) = (std::env::var_os(ROOT), std::env::var_os(SEED)) {
            let root = PathBuf::from(root);
            let seed = seed.to_str().unwrap().parse().unwrap();
            live(&root, self.sizes, seed, &(self.open)(&root));
        }
        let disk = disk();
        let root = disk.as_ref().canonicalize().unwrap();
        fs::create_dir_all(root.join("snapshots")).unwrap();
        let mut random = Random(0x1234_5678);
        for seed in 1..=self.rounds {
            kill(self.name, &root, seed, 1 + random.below(STEPS_MAX));
            let backend = (self.open)(&root);
            put_right(&root, &backend);
            if seed % 10 == 0 {
                remove_all(&root, &backend);
            }
        }
        let backend = (self.open)(&root);
        remove_all(&root, &backend);
        let store = super::store::Store::new(&root, backend);
        // What a killed process began to give back, its file system finishes in the background.
        let start = std::time::Instant::now();
        while store.backend.recover(&[]).unwrap() != Report::default() || drops(&root) {
            assert!(start.elapsed().as_secs() < 60, "it does not end");
            store.settle();
        }
        super::checks::nothing_is_left(&store);
    }
}

/// Whether btrfs still has subvolumes to drop, which it counts as long as it does.
fn drops(root: &Path) -> bool {
    let open = File::open(root).unwrap();
    if !btrfs::is_btrfs(&open).unwrap() {
        return false;
    }
    let id = |number| QgroupId::new(0, number).unwrap();
    let counted = btrfs::qgroups(&open, id(256)..=id((1 << 48) - 1)).unwrap();
    !counted.is_empty()
}

/// xorshift, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn kill(name: &str, root: &Path, seed: u64, steps: u64) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    env.push((ROOT.into(), root.into()));
    env.push((SEED.into(), seed.to_string().into()));
    let mut child = Spawn::new(Path::new("/proc/self/exe"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env_clear_set(env)
        .stdin(OwnedFd::from(writer))
        .spawn()
        .unwrap();
    let mut seen = vec![0; usize::try_from(steps).unwrap()];
    let mut reader = File::from(OwnedFd::from(reader));
    let told = reader.read_exact(&mut seen);
    child.kill(Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    told.expect("it lives until it is killed");
}

/// One snapshot on the disk.
#[derive(Debug)]
struct Found {
    id: SnapshotId,
    directory: PathBuf,
    record: Record,
    limit: Option<Limit>,
}

impl Found {
    fn held(&self) -> Held<'_> {
        Held {
            id: self.id,
            key: &KEY,
            directory: &self.directory,
            record: &self.record,
        }
    }
}

/// Its text: the limit in bytes (0 when it is committed), the group, the note.
fn write_sidecar(directory: &Path, record: &Record, limit: Option<&Limit>) {
    let size = limit
        .and_then(|limit| limit.bytes)
        .map_or(0, |size| size.bytes().get());
    let group = limit.and_then(|limit| limit.group.as_ref());
    let group = group.map_or("-", |group| group.name.as_str());
    let text = format!("{size} {group} {}", record.to_note().0);
    let new = directory.join("sidecar.new");
    fs::write(&new, text).unwrap();
    fs::rename(new, directory.join("sidecar")).unwrap();
}

fn snapshots(root: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("snapshots")).unwrap() {
        let directory = entry.unwrap().path();
        let name = directory.file_name().unwrap().to_str().unwrap();
        let Ok(id) = name.parse() else { continue };
        let text = fs::read_to_string(directory.join("sidecar")).unwrap();
        let mut words = text.splitn(3, ' ');
        let size: u64 = words.next().unwrap().parse().unwrap();
        let group = words.next().unwrap();
        let note = Note(words.next().unwrap().to_owned());
        let limit = match (size, group) {
            (0, _) => None,
            (size, "-") => Some(bytes(size)),
            (size, group) => Some(in_group(bytes(size), group)),
        };
        found.push(Found {
            id: SnapshotId(id),
            directory: directory.clone(),
            record: Record::from_note(&note).unwrap(),
            limit,
        });
    }
    found.sort_by_key(|kept| kept.id);
    found
}

/// What the process does: each step is told before it is done.
fn live(root: &Path, sizes: Sizes, seed: u64, backend: &dyn Backend) -> ! {
    let mut random = Random(seed);
    let mut told = File::from(
        std::os::fd::AsFd::as_fd(&std::io::stdin())
            .try_clone_to_owned()
            .unwrap(),
    );
    let mut step = || told.write_all(b".").unwrap();
    let mut next = seed * IDS_PER_PROCESS;
    recover(root, backend);
    loop {
        let found = snapshots(root);
        let at = usize::try_from(random.below(found.len().max(1) as u64)).unwrap();
        match (random.below(8), found.get(at)) {
            (0..=2, _) | (_, None) => {
                let size = sizes.bytes * (1 + random.below(3));
                let limit = match random.below(3) {
                    0 if sizes.groups => in_group(bytes(size), "pod"),
                    _ => bytes(size),
                };
                prepare(root, backend, SnapshotId(next), &limit, &mut step);
                next += 1;
            }
            (3..=4, Some(kept)) => {
                let is_small =
                    |limit: &&Limit| limit.bytes.unwrap().bytes().get() < sizes.bytes * 16;
                if let Some(limit) = kept.limit.as_ref().filter(is_small) {
                    let larger = Limit {
                        bytes: bytes(limit.bytes.unwrap().bytes().get() * 2).bytes,
                        ..limit.clone()
                    };
                    step();
                    backend.set_limit(&kept.held(), &larger).unwrap();
                    step();
                    write_sidecar(&kept.directory, &kept.record, Some(&larger));
                    step();
                    backend.settle(&kept.held(), &larger).unwrap();
                }
            }
            (5, Some(kept)) if kept.limit.is_some() => {
                step();
                let closed = backend.commit(&kept.held()).unwrap();
                step();
                write_sidecar(&kept.directory, &closed.record, None);
                step();
                backend.committed(&kept.held()).unwrap();
            }
            (_, Some(kept)) => {
                let grave = root.join(format!("snapshots/rm-{}", kept.id));
                step();
                fs::rename(&kept.directory, &grave).unwrap();
                bury(backend, kept.id, &grave, Some(&kept.record), &mut step);
            }
        }
        if snapshots(root).len() > 12 {
            for kept in snapshots(root).into_iter().take(6) {
                let grave = root.join(format!("snapshots/rm-{}", kept.id));
                fs::rename(&kept.directory, &grave).unwrap();
                bury(backend, kept.id, &grave, Some(&kept.record), &mut step);
            }
        }
    }
}

fn prepare(
    root: &Path,
    backend: &dyn Backend,
    id: SnapshotId,
    limit: &Limit,
    step: &mut dyn FnMut(),
) {
    let new = root.join(format!("snapshots/new-{id}"));
    step();
    fs::create_dir(&new).unwrap();
    step();
    let record = backend.create(&new, id, limit).unwrap();
    step();
    fs::write(record.upper(&new).join("file"), vec![7; 100_000]).unwrap();
    write_sidecar(&new, &record, Some(limit));
    step();
    fs::rename(&new, root.join(format!("snapshots/{id}"))).unwrap();
}

fn bury(
    backend: &dyn Backend,
    id: SnapshotId,
    grave: &Path,
    record: Option<&Record>,
    step: &mut dyn FnMut(),
) {
    let left = Left {
        id,
        directory: grave,
        record,
    };
    step();
    backend.release(&left).unwrap();
    step();
    if grave.exists() {
        fs::remove_dir_all(grave).unwrap();
    }
    step();
    backend.forget(&left).unwrap();
}

fn recover(root: &Path, backend: &dyn Backend) {
    let found = snapshots(root);
    let kept: Vec<_> = found
        .iter()
        .map(|kept| Kept {
            held: kept.held(),
            limit: kept.limit.as_ref(),
        })
        .collect();
    Plain::default().recover(&kept).unwrap();
    backend.recover(&kept).unwrap();
}

/// What a new daemon does; then every snapshot must be as it was told.
fn put_right(root: &Path, backend: &dyn Backend) {
    recover(root, backend);
    for entry in fs::read_dir(root.join("snapshots")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let buried = name.strip_prefix("new-").or(name.strip_prefix("rm-"));
        if let Some(number) = buried {
            let id = SnapshotId(number.parse().unwrap());
            // A sidecar may be there already.
            let text = fs::read_to_string(path.join("sidecar")).ok();
            let note = text.and_then(|text| Some(text.splitn(3, ' ').nth(2)?.to_owned()));
            let record = note.map(|note| Record::from_note(&Note(note)).unwrap());
            bury(backend, id, &path, record.as_ref(), &mut || {});
        }
    }
    for kept in snapshots(root) {
        if kept.record == Record::Plain {
            assert!(kept.record.upper(&kept.directory).join("file").exists());
            continue;
        }
        match backend.attach(&kept.held()) {
            Ok(()) => {}
            // Its layer was moved out and nobody was told: nothing is lost.
            Err(error) if error.to_string().contains("commit it again") => {
                let closed = backend.commit(&kept.held()).unwrap();
                write_sidecar(&kept.directory, &closed.record, None);
                assert!(closed.record.upper(&kept.directory).join("file").exists());
                continue;
            }
            Err(error) => panic!("{kept:?}: {error}"),
        }
        let upper = kept.record.upper(&kept.directory);
        assert!(upper.join("file").exists(), "{kept:?}");
        let charge = backend.charge(&kept.held()).unwrap().unwrap();
        let limit = kept.limit.as_ref().and_then(|limit| limit.bytes);
        let limit = limit.map(|size| size.bytes().get());
        let shared = kept.record.group().is_some();
        if backend.abilities().resize == Resize::Both && !shared {
            assert_eq!(charge.bytes_max, limit, "{kept:?}");
        }
    }
}

fn remove_all(root: &Path, backend: &dyn Backend) {
    recover(root, backend);
    for kept in snapshots(root) {
        let grave = root.join(format!("snapshots/rm-{}", kept.id));
        fs::rename(&kept.directory, &grave).unwrap();
        bury(backend, kept.id, &grave, Some(&kept.record), &mut || {});
    }
}
