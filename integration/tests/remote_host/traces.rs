//! What one host reads first of a disk is fetched by the next one before it is read. Each is in a network namespace of its own, and
//! has the store behind a slow link.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    images::Image,
    network::NetworkNamespace,
    process::{command, output_of},
    runtime::built,
    snapshotter::{Setup, Snapshotter},
    store::{Served, Store},
    wait::{SOON, Sources, until},
};

use super::{
    host::{Host, has_pre_content},
    lazy::{first_work, metric, told},
};

/// What DADI and others measure cold starts with.
const RATE: &str = "25mbit";

/// By which nothing but metadata comes in the time of a test.
const SLOW_RATE: &str = "256kbit";

/// Of the reads that wait on the first host, one in so many may wait on the second.
const FEWER: u64 = 10;

/// A network namespace for a host, and one for its store.
struct Link {
    store: NetworkNamespace,
    host: NetworkNamespace,
}

impl Link {
    fn new(rate: &str) -> Result<Self> {
        let this = Self {
            store: NetworkNamespace::new()?,
            host: NetworkNamespace::new()?,
        };
        let peer = this.host.path();
        let peer = peer.to_str().context("a path in UTF-8")?;
        let run = |side: &NetworkNamespace, words: &[&str]| {
            output_of(side.command(words[0]).args(&words[1..]), SOON).map(drop)
        };
        let pair = [
            "ip", "link", "add", "to-host", "type", "veth", "peer", "name", "to-store",
        ];
        run(&this.store, &[&pair[..], &["netns", peer]].concat())?;
        for (side, device, address) in [
            (&this.store, "to-host", "10.231.7.1/24"),
            (&this.host, "to-store", "10.231.7.2/24"),
        ] {
            run(side, &["ip", "addr", "add", address, "dev", device])?;
            run(side, &["ip", "link", "set", device, "up"])?;
        }
        let slow = [
            "tc", "qdisc", "add", "dev", "to-host", "root", "tbf", "rate", rate,
        ];
        run(
            &this.store,
            &[&slow[..], &["burst", "64kb", "latency", "400ms"]].concat(),
        )?;
        Ok(this)
    }

    /// A host with that store.
    fn start(&self, store: Store, more: &str) -> Result<Host> {
        let program = built("snapshotter-remote")?;
        let serve = self.store.command(&program);
        let served = Served::start_by(serve, &store.path(), "10.231.7.1:0")?;
        let config = store.config(&served.address) + more;
        let start = store.path().with_file_name("start-host");
        let network = self.host.path();
        let script = format!(
            "#!/bin/sh\nexec nsenter --net={} {} \"$@\"\n",
            network.display(),
            program.display()
        );
        fs::write(&start, script)?;
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
        let setup = Setup {
            program: start,
            ..Setup::remote(&config)?
        };
        Ok(Host {
            address: served.address.clone(),
            snapshotter: Snapshotter::start(setup)?,
            served: Some(served),
            store,
        })
    }
}

fn config(metrics: &Path, prefetch: &str) -> String {
    format!(
        "[attach]\nkind = \"lazy\"\ncomplete_mebibytes = 0\n[prefetch]\nrecord_seconds = 300\n{prefetch}\
         [metrics]\naddress = \"unix:{}\"\n",
        metrics.display()
    )
}

fn traces(metrics: &Path, outcome: &str) -> Result<u64> {
    // What was not counted yet is not there.
    metric(metrics, &format!("traces_total{{outcome=\"{outcome}\"}}")).or(Ok(0))
}

fn await_trace(metrics: &Path, outcome: &str) -> Result<()> {
    until(outcome, SOON, Sources::none(), || {
        Ok((traces(metrics, outcome)? == 1).then_some(()))
    })
}

/// Reads that waited for the first work of a container.
fn waits_of_first_work(
    host: &Host,
    metrics: &Path,
    layer: &str,
    prepare: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let mounted = host.mount("c", layer)?;
    prepare()?;
    let before = metric(metrics, "fault_waits_total")?;
    first_work(&mounted)?;
    let waits = metric(metrics, "fault_waits_total")? - before;
    mounted.unmount()?;
    Ok(waits)
}

/// Its container is gone before the time of recording is over, so the store is told at once.
fn first_host(store: Store, metrics: &Path) -> Result<(Store, u64)> {
    let link = Link::new(RATE)?;
    let host = link.start(store, &config(metrics, ""))?;
    let layer = host.pull("extract")?.context("the store has it")?;
    let waits = waits_of_first_work(&host, metrics, &layer, || Ok(()))?;
    ensure!(waits > 5, "{waits} reads waited");
    await_trace(metrics, "absent").with_context(|| host.log().unwrap_or_default())?;
    host.remove(&["c"])?;
    await_trace(metrics, "told").with_context(|| host.log().unwrap_or_default())?;
    host.remove(&[&layer])?;
    Ok((host.finish()?, waits))
}

fn second_host(store: Store, metrics: &Path, waits_before: u64) -> Result<Store> {
    let link = Link::new(RATE)?;
    let host = link.start(store, &config(metrics, ""))?;
    let layer = host.pull("extract")?.context("the store has it")?;
    let waits = waits_of_first_work(&host, metrics, &layer, || {
        await_trace(metrics, "received")?;
        until("the trace was followed", SOON, Sources::none(), || {
            Ok((metric(metrics, "prefetch_pending")? == 0).then_some(()))
        })
    })?;
    let chunks = metric(metrics, "prefetched_chunks_total")?;
    println!(
        "{waits_before} reads waited on the first host, {waits} on the second, which fetched {chunks} chunks before"
    );
    ensure!(
        chunks > 5 && waits * FEWER <= waits_before,
        "{waits} reads waited"
    );
    let status = told(&host, "status")?;
    ensure!(status.contains(" of its trace"), "{status}");
    host.remove(&["c"])?;
    // It has a vote as well.
    await_trace(metrics, "told")?;
    host.remove(&[&layer])?;
    host.finish()
}

/// So slow that the container is gone before: nothing more is fetched then.
fn third_host(store: Store, metrics: &Path) -> Result<Store> {
    let link = Link::new(SLOW_RATE)?;
    let host = link.start(store, &config(metrics, "fetches_max = 1\n"))?;
    let layer = host.pull("extract")?.context("the store has it")?;
    let mounted = host.mount("c", &layer)?;
    await_trace(metrics, "received")?;
    mounted.unmount()?;
    host.remove(&["c"])?;
    ensure!(metric(metrics, "prefetch_pending")? <= 1);
    ensure!(host.log()?.contains("a trace is followed no further"));
    host.remove(&[&layer])?;
    host.finish()
}

#[test]
fn what_one_host_reads_first_the_next_has_before_it_reads() {
    if !has_pre_content() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let metrics = directory.path().join("metrics");
    let store = Store::with_images(&[Image::Debian]).unwrap();
    let (store, waits) = first_host(store, &metrics).unwrap();
    let store = second_host(store, &metrics, waits).unwrap();
    assert_eq!(store.objects("traces").unwrap().len(), 2);
    let store = third_host(store, &metrics).unwrap();
    let chain_id = &store.chain_ids[0];
    let mut remove = command(built("snapshotter-remote").unwrap());
    remove
        .args(["store", "rm", "--prefixes", chain_id, "--dir"])
        .arg(store.path());
    output_of(&mut remove, SOON).unwrap();
    assert!(store.objects("traces").unwrap().is_empty());
}
