//! snapshotter-quota and containerd's overlayfs in turn, behind one containerd on one disk.
//!
//! What is compared goes through containerd's own socket, so both pay for containerd alike, and
//! ours for the way through its socket too. What stock has nothing like (changing a limit, the
//! daemon's start) is asked of the daemon directly.
//!
//! POUCH_BENCH_REQUESTS sets the samples of short requests (default 500), POUCH_BENCH_FILES how
//! many files are counted (200,000), POUCH_BENCH_TREES how many such snapshots each side commits
//! (3), POUCH_BENCH_CROWDS how often 1,000 snapshots are made at once (5), POUCH_BENCH_SNAPSHOTS
//! with how many the daemon starts (10,000).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use integration::{
    conformance::Snapshots,
    figures::{Goal, Measure, Names},
    versions::Installed,
};
use proto::snapshots::Info;

use crate::{
    count,
    crowd::prepare_all,
    in_milliseconds, milliseconds,
    scene::{LAYERS, MAX_SIZE, PARENT, Scene, Side, labels},
};

pub(crate) const NAMES: Names = Names {
    stock: "overlayfs",
    ours: "quota",
};

/// How many snapshots are made at once.
const CROWD: u32 = 1000;

/// How many files a directory of a tree has.
const FILES_IN_DIRECTORY: u32 = 200;

/// How often the daemon is started with many snapshots.
const STARTS: u32 = 5;

/// How often files are counted one by one.
const WALKS: u32 = 5;

/// How often the quota is asked.
const COUNTS: u32 = 50;

const GIB: u64 = 1 << 30;

/// What was measured where, and all measures.
pub(crate) fn measure(installed: &Installed) -> Result<(String, Vec<Measure>)> {
    let scene = Scene::set(installed)?;
    let bench = Bench {
        stock: scene.open(Side::Stock)?,
        ours: scene.open(Side::Ours)?,
        direct: Snapshots::connect(&scene.quota.target())?,
        scene: &scene,
    };
    let requests = count("POUCH_BENCH_REQUESTS", 500)?;
    let mut measures = bench.prepares(requests)?;
    measures.extend(bench.updates(requests)?);
    measures.push(bench.crowds(count("POUCH_BENCH_CROWDS", 5)?)?);
    let files = count("POUCH_BENCH_FILES", 200_000)?;
    measures.extend(bench.trees(files, count("POUCH_BENCH_TREES", 3)?)?);
    measures.extend(bench.starts(count("POUCH_BENCH_SNAPSHOTS", 10_000)?)?);
    let title = format!(
        "containerd {}, back end {}, {LAYERS} layers below each snapshot",
        installed.version, scene.kind,
    );
    drop(bench);
    scene.clear()?;
    Ok((title, measures))
}

struct Bench<'a> {
    scene: &'a Scene,
    stock: Snapshots,
    ours: Snapshots,
    /// Ours without containerd.
    direct: Snapshots,
}

impl Bench<'_> {
    fn snapshots(&self, side: Side) -> &Snapshots {
        match side {
            Side::Stock => &self.stock,
            Side::Ours => &self.ours,
        }
    }

    /// One request after the other, the snapshotters in turn, so that both meet the same machine.
    fn prepares(&self, requests: u32) -> Result<Vec<Measure>> {
        let mut took = Measure::new("Prepare and Mounts", "ms", Goal::RatioMax(1.1));
        let mut syncs = Measure::new("syncs of a Prepare", "syncs", Goal::OursMax(1.0));
        for number in 0..=requests {
            let key = format!("short-{number}");
            for side in Side::BOTH {
                let snapshots = self.snapshots(side);
                let before = self.scene.store_syncs()?;
                let started = Instant::now();
                snapshots.prepare(&key, PARENT, labels(GIB))?;
                snapshots.mounts(&key)?;
                let now = milliseconds(started);
                let after = self.scene.store_syncs()?;
                // The first pays for cold caches.
                if number == 0 {
                    continue;
                }
                samples(&mut took, side).push(now);
                if side == Side::Ours {
                    syncs.ours.push(after - before);
                }
            }
        }
        Ok(vec![took, syncs])
    }

    /// Each of a snapshot that was just made: then nothing is on its way to the disk.
    fn updates(&self, requests: u32) -> Result<Vec<Measure>> {
        let mut changed = Measure::new("Update of the label, by containerd", "ms", Goal::None);
        let goal = Goal::OursMax(1.0);
        let mut resized = Measure::new("Update of the limit, of the daemon", "ms", goal);
        let parent = self.key_of_ours(PARENT)?;
        for number in 0..requests {
            let key = format!("changed-{number}");
            for side in Side::BOTH {
                let snapshots = self.snapshots(side);
                snapshots.prepare(&key, PARENT, labels(GIB))?;
                let now = time(|| resize(snapshots, &key, 2 * GIB))?;
                samples(&mut changed, side).push(now);
            }
            self.direct.prepare(&key, &parent, labels(GIB))?;
            let now = time(|| resize(&self.direct, &key, 2 * GIB))?;
            resized.ours.push(now);
        }
        Ok(vec![changed, resized])
    }

    /// What our daemon calls a snapshot that was made through containerd: `NAMESPACE/NUMBER/KEY`.
    fn key_of_ours(&self, key: &str) -> Result<String> {
        let end = format!("/{key}");
        let all = self.direct.list(&[format!("name~=\"{end}$\"")])?;
        let found = all.into_iter().find(|info| info.name.ends_with(&end));
        Ok(found
            .with_context(|| format!("{key} is unknown to the daemon"))?
            .name)
    }

    fn crowds(&self, crowds: u32) -> Result<Measure> {
        let name = format!("{CROWD} Prepares at once");
        let mut measure = Measure::new(&name, "ms", Goal::RatioMax(0.5));
        for number in 0..=crowds {
            for side in Side::BOTH {
                let keys = (0..CROWD).map(|one| format!("crowd-{number}-{one}"));
                let took = prepare_all(&self.scene.target(side), PARENT, keys.collect())?;
                if number > 0 {
                    samples(&mut measure, side).push(in_milliseconds(took));
                }
            }
        }
        Ok(measure)
    }

    /// Usage and Commit of snapshots with many files: through containerd beside overlayfs, and asked
    /// of our daemon itself, beside the same walks of overlayfs, which has no other door.
    fn trees(&self, files: u32, trees: u32) -> Result<Vec<Measure>> {
        let goal = Goal::RatioMax(0.001);
        let measure = |what: &str| Measure::new(&format!("{what} {files} files"), "ms", goal);
        let mut usage = measure("Usage of");
        let mut commit = measure("Commit of");
        let mut usage_direct = measure("by the daemon: Usage of");
        let mut commit_direct = measure("by the daemon: Commit of");
        let parent = self.key_of_ours(PARENT)?;
        for number in 0..trees {
            let key = format!("tree-{number}");
            for (snapshots, parent) in [
                (&self.stock, PARENT),
                (&self.ours, PARENT),
                (&self.direct, parent.as_str()),
            ] {
                grow(snapshots, &key, parent, files)?;
            }
            let key_of_ours = self.key_of_ours(&key)?;
            for side in Side::BOTH {
                self.scene.sync()?;
                let snapshots = self.snapshots(side);
                let counts = match side {
                    Side::Stock => WALKS,
                    Side::Ours => COUNTS,
                };
                for _ in 0..counts {
                    let now = time(|| Ok(snapshots.usage(&key)?))?;
                    samples(&mut usage, side).push(now);
                    if side == Side::Ours {
                        let now = time(|| Ok(self.direct.usage(&key_of_ours)?))?;
                        usage_direct.ours.push(now);
                    }
                }
                samples(&mut commit, side).push(commit_of(snapshots, &key)?);
            }
            self.scene.sync()?;
            commit_direct.ours.push(commit_of(&self.direct, &key)?);
        }
        usage_direct.stock.clone_from(&usage.stock);
        commit_direct.stock.clone_from(&commit.stock);
        Ok(vec![usage, usage_direct, commit, commit_direct])
    }

    /// From the start of the program to READY=1.
    fn starts(&self, snapshots: u32) -> Result<Vec<Measure>> {
        let quota = &self.scene.quota;
        let there = u32::try_from(self.direct.list(&[])?.len())?;
        let parent = self.key_of_ours(PARENT)?;
        let missing: Vec<_> = (there..snapshots)
            .map(|one| format!("more-{one}"))
            .collect();
        for keys in missing.chunks(CROWD as usize) {
            prepare_all(&quota.target(), &parent, keys.to_vec())?;
        }
        let name = |after: &str| format!("start with {snapshots} snapshots {after}");
        let goal = Goal::OursMax(1000.0);
        let mut stopped = Measure::new(&name("after SIGTERM"), "ms", goal);
        let mut killed = Measure::new(&name("after kill -9"), "ms", goal);
        for _ in 0..STARTS {
            quota.stop()?;
            stopped.ours.push(time(|| quota.start_again())?);
            quota.kill9()?;
            killed.ours.push(time(|| quota.start_again())?);
        }
        Ok(vec![stopped, killed])
    }
}

fn samples(measure: &mut Measure, side: Side) -> &mut Vec<f64> {
    match side {
        Side::Stock => &mut measure.stock,
        Side::Ours => &mut measure.ours,
    }
}

/// How long it took in milliseconds.
fn time<T>(act: impl FnOnce() -> Result<T>) -> Result<f64> {
    let started = Instant::now();
    act()?;
    Ok(milliseconds(started))
}

fn resize(snapshots: &Snapshots, key: &str, bytes: u64) -> Result<()> {
    let info = Info {
        name: key.to_owned(),
        labels: labels(bytes),
        ..Info::default()
    };
    snapshots.update(info, &[&format!("labels.{MAX_SIZE}")])?;
    Ok(())
}

/// Prepares a snapshot with so many files.
fn grow(snapshots: &Snapshots, key: &str, parent: &str, files: u32) -> Result<()> {
    let mounts = snapshots.prepare(key, parent, labels(16 * GIB))?;
    let upper = mounts
        .iter()
        .flat_map(|mount| &mount.options)
        .find_map(|option| option.strip_prefix("upperdir="));
    let upper = upper.context("an overlay has an upper directory")?;
    fill(Path::new(upper), files)
}

/// How long a Commit took in milliseconds.
fn commit_of(snapshots: &Snapshots, key: &str) -> Result<f64> {
    let name = format!("{key}-done");
    time(|| Ok(snapshots.commit(&name, key, labels(GIB))?))
}

/// Files of one byte, as below a container's root.
fn fill(upper: &Path, files: u32) -> Result<()> {
    let mut directory = PathBuf::new();
    for number in 0..files {
        if number % FILES_IN_DIRECTORY == 0 {
            directory = upper.join(format!("d{}", number / FILES_IN_DIRECTORY));
            fs::create_dir(&directory)?;
        }
        fs::write(directory.join(format!("f{number}")), "x")?;
    }
    Ok(())
}
