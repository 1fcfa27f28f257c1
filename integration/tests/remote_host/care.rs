//! What operators ask of a daemon that runs: a disk whole now, what is damaged found and mended under containers, what nobody uses gone.

use std::{fs::OpenOptions, os::unix::fs::FileExt, path::Path};

use anyhow::{Result, bail, ensure};
use integration::{
    images::Image,
    process::{Finished, Running, command},
    runtime::built,
    store::Store,
    wait::SOON,
};

use super::{
    faults::damage,
    host::{BackEnd, Host},
    lazy::{metric, only_read, told},
    truth::Truth,
};

fn ask(host: &Host, words: &[&str]) -> Result<Finished> {
    let mut ask = command(built("snapshotter-remote")?);
    ask.args(words);
    ask.arg("--address").arg(host.snapshotter.address());
    ask.arg("--root").arg(host.snapshotter.root());
    ask.arg("--config").arg(host.snapshotter.config_file());
    Running::start(&mut ask)?.finish(SOON * 2)
}

/// Changes a byte in the middle of the cached blob, as a disk that fails does: no event tells of it.
fn damage_cache(host: &Host) -> Result<()> {
    let [blob] = &host.cached("blobs")?[..] else {
        bail!("it has one blob");
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(blob.join("data"))?;
    let at = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x20], at)?;
    Ok(file.sync_all()?)
}

fn check_all(truth: &Truth, mounted: &Path) -> Result<()> {
    for file in truth.files("usr")?.iter().step_by(3) {
        truth.check(mounted, file, 0, 1 << 20)?;
    }
    Ok(())
}

/// All of it, once; without the store then.
fn check_warm(host: &Host, metrics: &Path, chain_id: &str) -> Result<()> {
    let said = ask(host, &["warm", chain_id])?.success()?.stdout();
    let line = told(host, "status")?;
    let here = line.split("chunks here (100 %)").next().unwrap_or_default();
    ensure!(
        line.contains("(100 %)") && said.contains(" chunks here"),
        "{said}{here}"
    );
    let fetched = metric(metrics, "chunks_fetched_total")?;
    ask(host, &["warm", chain_id])?.success()?;
    ensure!(
        metric(metrics, "chunks_fetched_total")? == fetched,
        "fetched again"
    );
    let unknown = format!("sha256:{}", "ab".repeat(32));
    let refused = ask(host, &["warm", &unknown])?.with_code(1)?.stderr();
    ensure!(refused.contains("pull its image first"), "{refused}");
    let refused = ask(host, &["verify", &unknown])?.with_code(1)?.stderr();
    ensure!(refused.contains("is not on this host"), "{refused}");
    Ok(())
}

/// One byte that is wrong is found, and right again for who reads next, under a container.
fn check_verify(
    host: &Host,
    metrics: &Path,
    truth: &Truth,
    layer: &str,
    chain_id: &str,
) -> Result<()> {
    let mounted = host.mount("c", layer)?;
    let said = ask(host, &["verify"])?.success()?.stdout();
    ensure!(said.contains("all are what they should be"), "{said}");
    damage_cache(host)?;
    let whole = damage(&host.store)?;
    let said = ask(host, &["verify", chain_id])?.with_code(1)?.stdout();
    ensure!(
        said.contains("1 damaged, 0 of them fetched again"),
        "{said}"
    );
    for (path, bytes) in whole {
        std::fs::write(path, bytes)?;
    }
    // What could not be had is asked for when somebody reads it, or now.
    ask(host, &["warm", chain_id])?.success()?;
    damage_cache(host)?;
    let said = ask(host, &["verify"])?.success()?.stdout();
    ensure!(
        said.contains("1 damaged, 1 of them fetched again"),
        "{said}"
    );
    ensure!(metric(metrics, "cache_damaged_total")? == 2);
    check_all(truth, mounted.point())?;
    mounted.unmount()
}

/// What a container uses stays, what is pinned stays, the rest goes and comes back.
fn check_gc(host: &Host, truth: &Truth, layer: &str, chain_id: &str) -> Result<()> {
    let gc = |words: &[&str]| anyhow::Ok(ask(host, words)?.success()?.stdout());
    // Its snapshot is there, although nobody has it mounted.
    ensure!(
        gc(&["gc"])?.starts_with("0.0 KiB went, of 0 disks"),
        "it is used"
    );
    host.remove(&["c"])?;
    let would = gc(&["gc", "--dry-run"])?;
    ensure!(
        would.contains(" would go, of 1 disk ") && !would.starts_with("0.0"),
        "{would}"
    );
    ask(host, &["pin", chain_id])?.success()?;
    let pinned = gc(&["gc"])?;
    ensure!(pinned.starts_with("0.0 KiB went, of 0 disks"), "{pinned}");
    ask(host, &["unpin", chain_id])?.success()?;
    let went = gc(&["gc"])?;
    ensure!(went.contains(" went, of 1 disk "), "{went}");
    ensure!(told(host, "status")?.contains("(0 %)"), "{went}");
    let mounted = host.mount("d", layer)?;
    truth.check(mounted.point(), Path::new("usr/bin/dash"), 0, 1 << 20)?;
    mounted.unmount()?;
    host.remove(&["d", layer])
}

fn check_care(by: BackEnd) {
    if !by.is_there() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let metrics = directory.path().join("metrics");
    let store = Store::with_images(&[Image::Debian]).unwrap();
    let truth = Truth::of(&store).unwrap();
    let chain_id = store.chain_ids[0].clone();
    let host = Host::of(store, &only_read(by, &metrics)).unwrap();
    let layer = host.pull("extract").unwrap().unwrap();
    check_warm(&host, &metrics, &chain_id).unwrap();
    check_verify(&host, &metrics, &truth, &layer, &chain_id).unwrap();
    check_gc(&host, &truth, &layer, &chain_id).unwrap();
    truth.end().unwrap();
    host.finish().unwrap();
}

#[test]
fn disks_are_fetched_verified_and_taken_away_when_an_operator_asks() {
    check_care(BackEnd::Lazy);
}

#[test]
fn disks_that_are_asked_for_by_fuse_are_as_well() {
    check_care(BackEnd::Fuse);
}
