//! What goes from the cache: under readers, who compare all that they read, in the limits of the configuration and of a full disk;
//! nothing that is pinned.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::FileExt,
    path::Path,
    sync::mpsc,
};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    conformance::Mounted,
    disk::Disk,
    images::Image,
    process::{command, output_of},
    random::Random,
    runtime::built,
    store::Store,
    wait::{SOON, Sources, until},
};

use sys::page_cache::extents_of;

use super::{
    host::{BackEnd, Host, has_pre_content},
    kills::{self, Done},
    lazy::{is_input_output_error, metric, only_read, told},
    truth::Truth,
};

/// Less than half of what is read.
const CACHE_BYTES: u64 = 24 << 20;

/// Chunks that go while somebody reads; more than the image has.
const CHUNKS: u64 = 600;

/// What is added to the configuration.
fn within(by: BackEnd, metrics: &Path) -> String {
    let cache = format!("[cache]\nmax_bytes = {CACHE_BYTES}\n");
    only_read(by, metrics) + &cache
}

/// Files of the image are read while `meanwhile` runs.
fn while_read(
    truth: &Truth,
    mounted: &Mounted,
    meanwhile: impl FnOnce(&mpsc::Receiver<Done>) -> Result<()>,
) -> Result<()> {
    let seed = Random::fresh_seed()?;
    kills::while_read(truth, mounted, ("usr", seed), meanwhile)
}

fn until_gone(metrics: &Path, chunks: u64) -> Result<()> {
    until("chunks go", SOON * 6, Sources::none(), || {
        Ok((metric(metrics, "evicted_chunks_total")? >= chunks).then_some(()))
    })
}

/// The kernel says of each file where it lies in its blob: by that it is known whose contents go.
fn check_places(host: &Host, truth: &Truth, mounted: &Mounted) -> Result<()> {
    let [blob] = &host.cached("blobs")?[..] else {
        bail!("it has one blob");
    };
    let blob = File::open(blob.join("data"))?;
    for path in truth.files("etc")?.iter().step_by(5) {
        let file = File::open(mounted.point().join(path))?;
        for extent in extents_of(&file)? {
            let mut expected = vec![0; usize::try_from(extent.bytes)?];
            let count = file.read_at(&mut expected, extent.at)?;
            let mut there = vec![0; count];
            blob.read_exact_at(&mut there, extent.below)?;
            ensure!(there == expected[..count], "{}: {extent:?}", path.display());
        }
    }
    Ok(())
}

/// Of a disk that is fetched as it is read, also by a daemon that is killed meanwhile.
fn check_lazily(host: &Host, truth: &Truth, metrics: &Path, mounted: &Mounted) -> Result<()> {
    while_read(truth, mounted, |_| {
        until_gone(metrics, CHUNKS)?;
        host.snapshotter.kill_and_restart()?;
        until_gone(metrics, CHUNKS / 4)
    })?;
    until(
        "the cache is within its limit",
        SOON,
        Sources::none(),
        || Ok((metric(metrics, "cache_bytes")? <= CACHE_BYTES).then_some(())),
    )?;
    let failed = metric(metrics, "faults_failed_total")?;
    ensure!(failed == 0, "{failed} reads failed");
    Ok(())
}

/// Of one that is whole, and watched no more, under the same mount.
fn check_whole(
    host: &mut Host,
    truth: &Truth,
    (by, metrics): (BackEnd, &Path),
    mounted: &Mounted,
) -> Result<()> {
    let all = host.store.config(&host.address) + &only_read(by, metrics);
    let all = all.replace("complete_mebibytes = 0", "complete_after_seconds = 0");
    host.snapshotter.stop()?;
    host.snapshotter.start_again_with(&all)?;
    // As it may not have been mounted by this daemon, somebody reads.
    truth.check(mounted.point(), &truth.largest("usr")?, 0, 1 << 20)?;
    until("all is fetched", SOON * 4, Sources::none(), || {
        Ok((told(host, "status")?.contains("(100 %), mounted")
            && metric(metrics, "blobs_watched")? == 0)
            .then_some(()))
    })?;
    host.snapshotter.stop()?;
    let config = host.store.config(&host.address) + &within(by, metrics);
    host.snapshotter.start_again_with(&config)?;
    while_read(truth, mounted, |_| until_gone(metrics, CHUNKS))
}

fn pin(host: &Host, word: &str) -> Result<String> {
    let mut pin = command(built("snapshotter-remote")?);
    pin.arg(word).arg(&host.store.chain_ids[0]);
    pin.arg("--root").arg(host.snapshotter.root());
    pin.arg("--config").arg(host.snapshotter.config_file());
    output_of(&mut pin, SOON)
}

/// Nothing of a disk that is pinned goes, and it goes on being read.
fn check_pinned(host: &Host, truth: &Truth, metrics: &Path, mounted: &Mounted) -> Result<()> {
    ensure!(pin(host, "pin")?.ends_with("  pinned\n"));
    ensure!(pin(host, "pin")?.ends_with("  was pinned\n"));
    ensure!(told(host, "status")?.contains(", pinned\n"));
    host.snapshotter.restart()?;
    while_read(truth, mounted, |_| {
        until(
            "the cache is over its limit",
            SOON * 4,
            Sources::none(),
            || {
                Ok(host
                    .log()?
                    .contains("nothing more that may go now")
                    .then_some(()))
            },
        )
    })?;
    ensure!(metric(metrics, "evicted_chunks_total")? == 0);
    ensure!(pin(host, "unpin")?.ends_with("  pinned no more\n"));
    ensure!(pin(host, "unpin")?.ends_with("  was not pinned\n"));
    while_read(truth, mounted, |_| until_gone(metrics, 1))
}

fn check_gone(by: BackEnd) {
    if !by.is_there() {
        return;
    }
    let metrics = tempfile::tempdir().unwrap();
    let metrics = metrics.path().join("metrics");
    let store = Store::with_images(&[Image::Debian]).unwrap();
    let truth = Truth::of(&store).unwrap();
    let mut host = Host::of(store, &within(by, &metrics)).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    let mounted = host.mount("a", &layer).unwrap();
    check_places(&host, &truth, &mounted).unwrap();
    check_lazily(&host, &truth, &metrics, &mounted).unwrap();
    check_whole(&mut host, &truth, (by, &metrics), &mounted).unwrap();
    check_pinned(&host, &truth, &metrics, &mounted).unwrap();
    truth.end().unwrap();
    mounted.unmount().unwrap();
    host.remove(&["a", &layer]).unwrap();
    host.finish().unwrap();
}

#[test]
fn what_goes_under_readers_is_fetched_again_and_never_read_as_zeros() {
    check_gone(BackEnd::Lazy);
}

#[test]
fn what_goes_while_it_is_asked_for_by_fuse_is_fetched_again_and_never_read_as_zeros() {
    check_gone(BackEnd::Fuse);
}

/// More of the image than there is room for.
const LARGE: &str = "usr/lib/x86_64-linux-gnu";

/// Reads one file after the other until one cannot be had; those before it are right.
fn read_until_refused(truth: &Truth, mounted: &Mounted) -> Result<Option<usize>> {
    for (count, file) in truth.files(LARGE)?.into_iter().enumerate() {
        if let Err(error) = truth.check(mounted.point(), &file, 0, 16 << 20) {
            is_input_output_error(Err(error))?;
            return Ok(Some(count));
        }
    }
    Ok(None)
}

/// Nothing more goes onto the disk.
fn fill(at: &Path) -> Result<()> {
    for bytes in [1 << 20, 4096] {
        let mut index = 0;
        loop {
            let path = at.join(format!("fill-{bytes}-{index}"));
            match fs::write(&path, vec![1; bytes]) {
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                written => written?,
            }
            index += 1;
        }
    }
    Ok(())
}

fn empty(at: &Path) -> Result<()> {
    for entry in fs::read_dir(at)? {
        let path = entry?.path();
        if path.display().to_string().contains("/fill-") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A daemon that has nothing to take over starts on a full disk, where snapshots are.
fn check_start(host: &Host, at: &Path, truth: &Truth) -> Result<()> {
    host.client()?.prepare("kept", "", BTreeMap::new())?;
    host.snapshotter.stop()?;
    fill(at)?;
    host.snapshotter.start_again()?;
    ensure!(host.log()?.contains("that of an earlier start is taken"));
    empty(at)?;
    let layer = host.pull("again")?.context("it is no disk")?;
    let mounted = host.mount("d", &layer)?;
    truth.check(mounted.point(), Path::new("etc/os-release"), 0, 4096)?;
    mounted.unmount()?;
    host.remove(&["kept", "d", &layer])
}

#[test]
fn on_a_full_disk_something_goes_before_who_reads_is_told_of_an_error() {
    if !has_pre_content() {
        return;
    }
    let disk = Disk::sparse("ext4", 28 << 20, &["-q"], "").unwrap();
    // Room for what is written when snapshots are removed.
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let metrics = disk.beside().join("metrics");
    let store = Store::with_images(&[Image::Debian]).unwrap();
    let truth = Truth::of(&store).unwrap();
    let root = disk.path().join("root");
    let host = Host::at(store, &only_read(BackEnd::Lazy, &metrics), Some(root)).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    let mounted = host.mount("c", &layer).unwrap();
    assert_eq!(read_until_refused(&truth, &mounted).unwrap(), None);
    assert!(metric(&metrics, "evicted_bytes_total").unwrap() > 0);
    // What is pinned stays, so there is no room.
    pin(&host, "pin").unwrap();
    let first = read_until_refused(&truth, &mounted).unwrap();
    assert!(first.is_some());
    assert!(host.log().unwrap().contains("No space left on device"));
    // What is here is read by another daemon as well, and no more.
    host.snapshotter.kill_and_restart().unwrap();
    assert!(read_until_refused(&truth, &mounted).unwrap() >= first);
    pin(&host, "unpin").unwrap();
    // What could not be had is not tried again at once.
    until("there is room again", SOON, Sources::none(), || {
        Ok(read_until_refused(&truth, &mounted)?
            .is_none()
            .then_some(()))
    })
    .unwrap();
    mounted.unmount().unwrap();
    fs::remove_file(ballast).unwrap();
    host.remove(&["c", &layer]).unwrap();
    check_start(&host, &disk.path(), &truth).unwrap();
    truth.end().unwrap();
    host.finish().unwrap();
}
