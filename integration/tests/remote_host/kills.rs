//! The daemon is killed again and again while files are read: nobody reads a wrong byte or is told of an error, and nobody waits
//! long. `POUCH_KILLS` says how often, `POUCH_SEED` repeats what is read.

use std::{
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    conformance::Mounted, figures::quantile, images::Image, random::Random, store::Store,
    wait::SOON,
};

use super::{
    host::{BackEnd, Host},
    truth::Truth,
};

/// Environment variable: how often it is killed.
const KILLS: &str = "POUCH_KILLS";

const KILLS_DEFAULT: u64 = 5;

/// A new host, with nothing in its cache, after so many: most of what is read then is there.
const KILLS_OF_A_HOST: usize = 25;

const READERS: u64 = 4;

/// Reads between two kills.
const READS: usize = 24;

const BYTES_MAX: u64 = 128 << 10;

/// Only some of the image is read, so that it never becomes whole, and the daemon is needed.
const READ: &str = "usr/lib/x86_64-linux-gnu";

/// A read that has ended.
pub(super) struct Done {
    begun: Instant,
    took: Duration,
}

/// Reads at random until it is told to stop, and says how long each read took.
fn read(
    (truth, mounted): (&Truth, &Path),
    files: &[PathBuf],
    seed: u64,
    is_over: &AtomicBool,
    done: &mpsc::Sender<Done>,
) -> Result<()> {
    let mut random = Random::new(seed);
    while !is_over.load(Ordering::Relaxed) {
        let file = random.choose(files);
        let length = truth.path().join(file).metadata()?.len();
        let at = random.below(length);
        let bytes = usize::try_from(1 + random.below(BYTES_MAX))?;
        let begun = Instant::now();
        truth.check(mounted, file, at, bytes)?;
        let took = begun.elapsed();
        if done.send(Done { begun, took }).is_err() {
            break;
        }
    }
    Ok(())
}

/// Files below a folder are read at random, and compared, while `meanwhile` runs, which hears of each read.
pub(super) fn while_read<T>(
    truth: &Truth,
    mounted: &Mounted,
    (folder, seed): (&str, u64),
    meanwhile: impl FnOnce(&mpsc::Receiver<Done>) -> Result<T>,
) -> Result<T> {
    let files = truth.files(folder)?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, reads) = mpsc::channel();
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (done, files, is_over) = (done.clone(), &files, &is_over);
                let pair = (truth, mounted.point());
                scope.spawn(move || read(pair, files, seed + reader, is_over, &done))
            })
            .collect();
        drop(done);
        let ended = meanwhile(&reads);
        is_over.store(true, Ordering::Relaxed);
        drop(reads);
        for reader in readers {
            reader.join().expect("it does not panic")?;
        }
        ended
    })
}

/// Kills it that often; the longest read that ended after each.
pub(super) fn kill(
    host: &Host,
    times: usize,
    reads: &mpsc::Receiver<Done>,
) -> Result<Vec<Duration>> {
    let next = || reads.recv_timeout(SOON).context("nobody reads any more");
    let mut pauses = Vec::new();
    for _ in 0..READS {
        next()?;
    }
    for _ in 0..times {
        let killed = Instant::now();
        host.snapshotter.kill_and_restart()?;
        let started = Instant::now();
        let mut longest = Duration::ZERO;
        let mut after = 0;
        while after < READS {
            let Done { begun, took } = next()?;
            if begun + took > killed {
                longest = longest.max(took);
            }
            after += usize::from(begun + took > started);
        }
        pauses.push(longest);
    }
    Ok(pauses)
}

/// Some kills of a new host, with readers.
fn round(
    host: &Host,
    truth: &Truth,
    mounted: &Mounted,
    times: usize,
    seed: u64,
) -> Result<Vec<Duration>> {
    while_read(truth, mounted, (READ, seed), |reads| {
        kill(host, times, reads)
    })
}

/// # Errors
/// One that is set and is no number.
fn number_from(variable: &str) -> Result<Option<u64>> {
    let set = std::env::var(variable).ok();
    let number = set.map(|text| text.parse().with_context(|| format!("{variable}={text}")));
    number.transpose()
}

fn kills(by: BackEnd) -> Result<()> {
    let times = usize::try_from(number_from(KILLS)?.unwrap_or(KILLS_DEFAULT))?;
    ensure!(times > 0, "{KILLS}=0 would test nothing");
    let mut store = Store::with_images(&[Image::Debian])?;
    let truth = Truth::of(&store)?;
    let seed = number_from("POUCH_SEED")?.map_or_else(Random::fresh_seed, Ok)?;
    println!("repeated by POUCH_SEED={seed}");
    let mut pauses_ms = Vec::new();
    let mut debts = 0;
    while pauses_ms.len() < times {
        let kind = by.name();
        let config = format!("[attach]\nkind = \"{kind}\"\ncomplete_mebibytes = 0\n");
        let host = Host::of(store, &config)?;
        let layer = host.pull("extract")?.context("it is no disk")?;
        let mounted = host.mount("c", &layer)?;
        let left = (times - pauses_ms.len()).min(KILLS_OF_A_HOST);
        let seed = seed + pauses_ms.len() as u64;
        let pauses = round(&host, &truth, &mounted, left, seed)
            .with_context(|| host.snapshotter.log_tail())?;
        let log = host.log()?;
        debts += log.matches("who waited for the daemon before").count();
        pauses_ms.extend(pauses.iter().map(|pause| pause.as_secs_f64() * 1000.0));
        mounted.unmount()?;
        host.remove(&["c", &layer])?;
        store = host.finish()?;
    }
    let quantiles = [0.5, 0.99, 1.0].map(|part| quantile(&pauses_ms, part));
    println!("{debts} times somebody waited for an answer that a killed daemon owed");
    println!("{times} kills: longest read after each, ms: median, p99, most {quantiles:.0?}");
    let limit_ms = SOON.as_secs_f64() * 1000.0;
    let too_long = pauses_ms.iter().find(|&&pause| pause > limit_ms);
    ensure!(too_long.is_none(), "a read took {too_long:.0?} ms");
    truth.end()
}

#[test]
fn the_daemon_is_killed_while_files_are_read_and_nobody_notices() {
    if BackEnd::Lazy.is_there() {
        kills(BackEnd::Lazy).unwrap();
    }
}

#[test]
fn the_daemon_is_killed_while_it_is_asked_by_fuse_and_nobody_notices() {
    if BackEnd::Fuse.is_there() {
        kills(BackEnd::Fuse).unwrap();
    }
}
