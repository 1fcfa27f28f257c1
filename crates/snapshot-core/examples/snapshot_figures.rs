//! What the core costs on this machine, by the plain driver: `snapshot_figures FOLDER`. It makes a
//! root there, prints times, and deletes it.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement for people, who see what went wrong"
)]

use std::{
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use snapshot_core::{CommitRequest, Filter, Key, Labels, PlainDriver, Snapshots, probe_overlay};

const MANY: usize = 10_000;
const CROWD: u32 = 1_000;

/// As many as a daemon has by default.
const THREADS: usize = 32;

fn main() {
    let folder = PathBuf::from(env::args_os().nth(1).unwrap_or_else(|| "/tmp".into()));
    let root = folder.join(format!("snapshot-figures-{}", std::process::id()));
    disk(&folder);
    let snapshots = open(&root);
    layer(&snapshots, "base", None);
    one_by_one(&snapshots);
    crowd(&snapshots);
    many(&snapshots);
    drop(snapshots);
    let begun = Instant::now();
    let snapshots = open(&root);
    println!(
        "open with {} snapshots: {:?}",
        snapshots.count().unwrap(),
        begun.elapsed()
    );
    let begun = Instant::now();
    let all = Filter::parse::<&str>(&[]).unwrap();
    let pages = snapshots.listing(all).unwrap();
    let listed: usize = pages.map(|page| page.unwrap().len()).sum();
    println!("list of {listed}: {:?}", begun.elapsed());
    tree(&snapshots);
    drop(snapshots);
    fs::remove_dir_all(&root).unwrap();
}

fn open(root: &Path) -> Snapshots {
    fs::create_dir_all(root).unwrap();
    let options = probe_overlay(root).unwrap().options();
    Snapshots::open(root, Arc::new(PlainDriver::new(options))).unwrap()
}

fn key(name: impl Into<String>) -> Key {
    Key::new(name).unwrap()
}

fn labels() -> Labels {
    let label = |name: &str| format!("containerd.io/snapshot/{name}");
    [
        (label("max-size"), "10737418240".to_owned()),
        (label("quota.inodes"), "100000".to_owned()),
    ]
    .into()
}

fn layer(snapshots: &Snapshots, name: &str, parent: Option<&Key>) {
    let active = key(format!("extract {name}"));
    snapshots.prepare(&active, parent, labels()).unwrap();
    let request = CommitRequest {
        name: key(name),
        key: active,
        parent: None,
        labels: labels(),
    };
    snapshots.commit(request).unwrap();
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!(
        "{what}: p50 {:?} p99 {:?} of {}",
        at(50),
        at(99),
        times.len()
    );
}

fn each(what: &str, count: usize, mut act: impl FnMut(usize)) {
    let time = |number| {
        let begun = Instant::now();
        act(number);
        begun.elapsed()
    };
    report(what, (0..count).map(time).collect());
}

fn disk(folder: &Path) {
    let path = folder.join("snapshot-figures-disk");
    let mut file = File::create(&path).unwrap();
    each("write of 8 KiB and fdatasync", 300, |_| {
        file.write_all(&[1; 8192]).unwrap();
        file.sync_data().unwrap();
    });
    fs::remove_file(path).unwrap();
}

fn one_by_one(snapshots: &Snapshots) {
    let base = key("base");
    let name = |number: usize| key(format!("default/{number}/one"));
    each("prepare", 500, |number| {
        snapshots
            .prepare(&name(number), Some(&base), labels())
            .unwrap();
    });
    updates(snapshots, &name);
    each("stat", 500, |number| {
        drop(snapshots.stat(&name(number)).unwrap());
    });
    each("mounts", 500, |number| {
        drop(snapshots.mounts(&name(number)).unwrap());
    });
    each("commit", 250, |number| {
        let request = CommitRequest {
            name: key(format!("committed {number}")),
            key: name(number),
            parent: None,
            labels: labels(),
        };
        snapshots.commit(request).unwrap();
    });
    each("remove", 250, |number| {
        snapshots.remove(&name(250 + number)).unwrap();
    });
    snapshots.cleanup().unwrap();
}

/// Each while nothing else waits for the disk.
fn updates(snapshots: &Snapshots, name: &impl Fn(usize) -> Key) {
    let time = |number: usize| {
        let other = key(format!("other {number}"));
        snapshots.prepare(&other, None, labels()).unwrap();
        let size = (
            "containerd.io/snapshot/max-size".to_owned(),
            number.to_string(),
        );
        let begun = Instant::now();
        snapshots
            .update(&name(number), &[], &[size].into())
            .unwrap();
        begun.elapsed()
    };
    report("update", (0..500).map(time).collect());
}

fn crowd(snapshots: &Snapshots) {
    let base = key("base");
    let next = AtomicU32::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= CROWD {
                        return;
                    }
                    let name = key(format!("k8s.io/{number}/crowd"));
                    snapshots.prepare(&name, Some(&base), labels()).unwrap();
                }
            });
        }
    });
    let took = begun.elapsed();
    println!(
        "{CROWD} prepares by {THREADS} threads: {took:?}, {:?} each",
        took / CROWD
    );
}

fn many(snapshots: &Snapshots) {
    let begun = Instant::now();
    for number in 0..MANY / 10 {
        let bottom = key("base");
        layer(snapshots, &format!("layer {number}"), Some(&bottom));
        let parent = key(format!("layer {number}"));
        for container in 0..9 {
            let name = key(format!("k8s.io/{number}/container-{container}"));
            snapshots.prepare(&name, Some(&parent), labels()).unwrap();
        }
    }
    println!("{MANY} more snapshots: {:?}", begun.elapsed());
}

fn tree(snapshots: &Snapshots) {
    let name = key("large");
    let mounts = snapshots.prepare(&name, None, Labels::new()).unwrap();
    let contents = PathBuf::from(&mounts[0].source);
    for folder in 0..1000 {
        let folder = contents.join(folder.to_string());
        fs::create_dir(&folder).unwrap();
        for file in 0..100 {
            fs::write(folder.join(file.to_string()), "x").unwrap();
        }
    }
    let begun = Instant::now();
    snapshots.usage(&name).unwrap();
    println!("usage of 100,000 files by walking: {:?}", begun.elapsed());
    let begun = Instant::now();
    snapshots.remove(&name).unwrap();
    println!("remove of them: {:?}", begun.elapsed());
    snapshots.cleanup().unwrap();
    println!("until they are deleted: {:?}", begun.elapsed());
}
