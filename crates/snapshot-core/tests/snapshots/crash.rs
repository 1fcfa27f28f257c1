//! A process that works on snapshots is killed again and again; what it was told is kept, what is
//! left half done is swept, and no number comes twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Mutex,
};

use snapshot_core::{CommitRequest, Filter, Kind, Labels, Snapshots, rebuild};
use sys::{ExitStatus, Signal, Spawn};

use crate::{
    driver::TestDriver,
    root::{directory, key},
};

/// Set in the process that is to be killed, to the root it works on.
const ROOT: &str = "SNAPSHOT_CRASH_ROOT";

/// Set there too: different in each round.
const SEED: &str = "SNAPSHOT_CRASH_SEED";

const KILLS: u64 = 220;
const WORKERS: usize = 4;
const SLOTS: u64 = 5;

/// A generator of pseudo-random numbers (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// What one worker does to one name. Each worker has names of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    Prepare(String),
    Commit(String),
    Remove(String),
    Label(String, String),
}

/// A committed snapshot has its name with this behind it.
const COMMITTED: &str = " layer";

/// Names that are there, with the label each has.
type Names = BTreeMap<String, String>;

impl Act {
    fn line(&self) -> String {
        match self {
            Self::Prepare(name) => format!("prepare\t{name}"),
            Self::Commit(name) => format!("commit\t{name}"),
            Self::Remove(name) => format!("remove\t{name}"),
            Self::Label(name, value) => format!("label\t{name}\t{value}"),
        }
    }

    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            ["prepare", name] => Self::Prepare(name.to_owned()),
            ["commit", name] => Self::Commit(name.to_owned()),
            ["remove", name] => Self::Remove(name.to_owned()),
            ["label", name, value] => Self::Label(name.to_owned(), value.to_owned()),
            _ => panic!("{line:?}"),
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Prepare(name) => drop(names.insert(name.clone(), String::new())),
            Self::Commit(name) => {
                names.remove(name);
                names.insert(format!("{name}{COMMITTED}"), String::new());
            }
            Self::Remove(name) => drop(names.remove(name)),
            Self::Label(name, value) => drop(names.insert(name.clone(), value.clone())),
        }
    }
}

/// A name of a worker goes round: prepared, labelled, committed or not, removed.
fn next_act(random: &mut Random, worker: usize, names: &Names) -> Act {
    let name = format!("w{worker}-{}", random.below(SLOTS));
    let layer = format!("{name}{COMMITTED}");
    match (
        names.contains_key(&name),
        names.contains_key(&layer),
        random.below(3),
    ) {
        (false, true, _) => Act::Remove(layer),
        (false, false, _) => Act::Prepare(name),
        (true, _, 0) => Act::Remove(name),
        (true, _, 1) => Act::Label(name, random.below(1000).to_string()),
        (true, false, _) => Act::Commit(name),
        (true, true, _) => Act::Remove(name),
    }
}

/// Does it and says the number of what was made as soon as a client would be answered.
fn perform(snapshots: &Snapshots, act: &Act, done: impl FnOnce(&str)) {
    match act {
        Act::Prepare(name) => {
            let base = key("base");
            let mounts = snapshots
                .prepare(&key(name), Some(&base), Labels::new())
                .unwrap();
            let made = directory(&mounts);
            done(made.file_name().unwrap().to_str().unwrap());
        }
        Act::Commit(name) => {
            let request = CommitRequest {
                name: key(&format!("{name}{COMMITTED}")),
                key: key(name),
                parent: None,
                labels: Labels::new(),
            };
            snapshots.commit_and_tell(request, |outcome| {
                outcome.unwrap();
                done("");
            });
        }
        Act::Remove(name) => {
            snapshots.remove(&key(name)).unwrap();
            done("");
        }
        Act::Label(name, value) => {
            let to = [("l".to_owned(), value.clone())].into();
            snapshots.update(&key(name), &[], &to).unwrap();
            done("");
        }
    }
}

fn seen(snapshots: &Snapshots) -> Names {
    let all = Filter::parse::<&str>(&[]).unwrap();
    let listed = snapshots.listing(all).unwrap().flat_map(Result::unwrap);
    let named = listed.map(|info| {
        let label = info.labels.get("l").cloned().unwrap_or_default();
        (info.name.to_string(), label)
    });
    named.collect()
}

fn of_worker(names: &Names, worker: usize) -> Names {
    let own = |(name, _): &(&String, &String)| name.starts_with(&format!("w{worker}-"));
    let names = names.iter().filter(own);
    names
        .map(|(name, label)| (name.clone(), label.clone()))
        .collect()
}

/// The process that is killed: says what is there, then each act before it does it and again when it
/// is done.
fn work(root: &Path, seed: u64) {
    let snapshots = Snapshots::open(root, TestDriver::new()).unwrap();
    if !seen(&snapshots).contains_key("base") {
        snapshots
            .prepare(&key("base in the making"), None, Labels::new())
            .unwrap();
        let request = CommitRequest {
            name: key("base"),
            key: key("base in the making"),
            parent: None,
            labels: Labels::new(),
        };
        snapshots.commit(request).unwrap();
    }
    // Unbuffered: what is said is said.
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    let stderr = Mutex::new(File::from(stderr));
    // One write for each line, so that none is torn.
    let say = |line: String| stderr.lock().unwrap().write_all(line.as_bytes()).unwrap();
    let names = seen(&snapshots);
    let there = names
        .iter()
        .map(|(name, label)| format!("\t{name}={label}"));
    say(format!("all\tthere{}\n", there.collect::<String>()));
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (snapshots, say) = (&snapshots, &say);
            let mut names = of_worker(&names, worker);
            let mut random = Random(seed * 1000 + worker as u64);
            scope.spawn(move || {
                loop {
                    let act = next_act(&mut random, worker, &names);
                    say(format!("{worker}\tbegin\t{}\n", act.line()));
                    perform(snapshots, &act, |number| {
                        say(format!("{worker}\tdone\t{number}\n"));
                    });
                    act.apply(&mut names);
                }
            });
        }
    });
}

/// What the killed processes said.
#[derive(Default)]
struct Told {
    names: Names,
    begun: [Option<Act>; WORKERS],
    numbers: BTreeSet<String>,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let (worker, rest) = line.split_once('\t').unwrap();
        if worker == "all" {
            let names = rest
                .split('\t')
                .skip(1)
                .map(|pair| pair.split_once('=').unwrap());
            let owned = names.map(|(name, label)| (name.to_owned(), label.to_owned()));
            return self.hold_against(owned.collect());
        }
        let worker: usize = worker.parse().unwrap();
        match rest.split_once('\t').unwrap() {
            ("begin", act) => self.begun[worker] = Some(Act::parse(act)),
            ("done", number) => {
                self.begun[worker].take().unwrap().apply(&mut self.names);
                let is_new = number.is_empty() || self.numbers.insert(number.to_owned());
                assert!(is_new, "number {number} was given twice");
            }
            _ => panic!("{line:?}"),
        }
    }

    /// All that was done is there; what was only begun may be.
    fn hold_against(&mut self, seen: Names) {
        for worker in 0..WORKERS {
            let own = of_worker(&seen, worker);
            let mut done = of_worker(&self.names, worker);
            if own != done {
                let begun = self.begun[worker].clone();
                begun
                    .as_ref()
                    .unwrap_or_else(|| panic!("{own:?} is not {done:?}"))
                    .apply(&mut done);
                assert_eq!(own, done, "after {begun:?}");
            }
        }
        self.begun = Default::default();
        self.names = seen;
    }
}

/// Runs one process, hears `lines` of it and kills it.
fn run_and_kill(root: &Path, seed: u64, lines: u64, told: &mut Told) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    environment.push((ROOT.into(), root.into()));
    environment.push((SEED.into(), seed.to_string().into()));
    let mut child = Spawn::new(Path::new("/proc/self/exe"))
        .args([
            "crash::kills_lose_nothing",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env_clear_set(environment)
        .stdout(OwnedFd::from(
            File::options().write(true).open("/dev/null").unwrap(),
        ))
        .stderr(OwnedFd::from(writer))
        .spawn()
        .unwrap();
    let mut heard = BufReader::new(File::from(OwnedFd::from(reader))).lines();
    for line in heard.by_ref().take(usize::try_from(lines).unwrap()) {
        told.hear(&line.unwrap());
    }
    child.kill(Signal::SIGKILL).unwrap();
    assert_eq!(
        child.wait().unwrap(),
        ExitStatus::Signaled(Signal::SIGKILL as i32)
    );
    heard.for_each(|line| told.hear(&line.unwrap()));
}

fn directories(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("snapshots")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn kills_lose_nothing() {
    if let Some(root) = std::env::var_os(ROOT) {
        let seed = std::env::var(SEED).unwrap().parse().unwrap();
        return work(&PathBuf::from(root), seed);
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut told = Told::default();
    let mut random = Random(7);
    for seed in 0..KILLS {
        run_and_kill(root, seed, random.below(90), &mut told);
        // Some leave it all to the next process, whose start is then killed too.
        if seed % 3 == 0 {
            let snapshots = Snapshots::open(root, TestDriver::new()).unwrap();
            told.hold_against(seen(&snapshots));
            snapshots.cleanup().unwrap();
            assert_eq!(
                directories(root).len(),
                told.names.len(),
                "{:?}",
                directories(root)
            );
        }
    }
    let snapshots = Snapshots::open(root, TestDriver::new()).unwrap();
    told.hold_against(seen(&snapshots));
    let kinds = |snapshots: &Snapshots| {
        let committed = Filter::parse(&["kind==committed"]).unwrap();
        let listed = snapshots.listing(committed).unwrap();
        let kinds = listed
            .flat_map(Result::unwrap)
            .inspect(|info| assert_eq!(info.kind, Kind::Committed));
        kinds.count()
    };
    let (names, committed) = (seen(&snapshots), kinds(&snapshots));
    drop(snapshots);

    // The sidecars are as whole as the store.
    std::fs::remove_file(root.join("store.redb")).unwrap();
    let rebuilt = rebuild(root).unwrap();
    assert_eq!(rebuilt.set_aside, []);
    let snapshots = Snapshots::open(root, TestDriver::new()).unwrap();
    assert_eq!((seen(&snapshots), kinds(&snapshots)), (names, committed));
}
