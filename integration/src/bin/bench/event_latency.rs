//! How soon a refused write is an event for who listens to the daemon, on a kernel that tells.
//!
//! The machine's kernel need not have project quota, so this runs in a guest, on an emulated
//! processor: what it says is more than what real hardware needs.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    conformance::{Snapshots, mount_all},
    disk::Disk,
    figures::{Goal, Measure},
    grpc::channel,
    guest::{Guest, Series},
    snapshotter::{Setup, Snapshotter},
};
use proto::quota::{Event, EventsRequest, Follow, What, quota_client::QuotaClient};

use crate::{count, in_milliseconds, scene::labels};

/// The argument with which this program is started in the guest.
pub(crate) const IN_GUEST: &str = "event-latency-in-guest";

/// What each line with a sample begins with.
const MARK: &str = "event-latency:";

/// From the guest's start to its end, and for one event.
const GUEST_LIMIT: Duration = Duration::from_secs(600);
const EVENT_LIMIT: Duration = Duration::from_secs(60);

const KERNEL: Series = Series::V6_1;

const LIMIT_BYTES: u64 = 8 << 20;

const DISK_BYTES: u64 = 1 << 30;

/// Boots the guest and takes its samples.
pub(crate) fn measure() -> Result<(String, Vec<Measure>)> {
    let program = std::env::current_exe()?;
    let arguments = vec![IN_GUEST.to_owned()];
    let guest = Guest::running(KERNEL, &program, arguments, GUEST_LIMIT)?;
    let outcome = guest.run(|_| {})?;
    ensure!(outcome.code == 0, "in the guest:\n{}", outcome.output);
    let mut measures = Vec::new();
    for kind in KINDS {
        let name = format!("a refused write is an event, {kind}");
        let mut measure = Measure::new(&name, "ms", Goal::OursMax(10.0));
        let beginning = format!("{MARK} {kind} ");
        for line in outcome.output.lines() {
            if let Some(sample) = line.trim().strip_prefix(&beginning) {
                measure.ours.push(sample.parse().context("a sample")?);
            }
        }
        ensure!(!measure.ours.is_empty(), "no samples of {kind}");
        measures.push(measure);
    }
    let title = format!("events, back end prjquota, in a guest with kernel {KERNEL:?}");
    Ok((title, measures))
}

const KINDS: [&str; 2] = ["ext4", "xfs"];

/// In the guest: prints the samples. POUCH_BENCH_EVENTS is not handed on to it.
pub(crate) fn measure_here() -> Result<()> {
    let rounds = count("POUCH_BENCH_EVENTS", 20)?;
    for kind in KINDS {
        let mkfs: &[&str] = match kind {
            "ext4" => &["-q", "-O", "project,quota"],
            _ => &["-q"],
        };
        let disk = Disk::sparse(kind, DISK_BYTES, mkfs, "prjquota")?;
        let snapshotter = Snapshotter::start(Setup {
            root: Some(disk.path().join("root")),
            ..Setup::quota("[backend]\nkind = \"prjquota\"\n")?
        })?;
        let snapshots = Snapshots::connect(&snapshotter.target())?;
        let mounts = snapshots.prepare("bench/1/web", "", labels(LIMIT_BYTES))?;
        let point = snapshotter.work().join("mounted");
        fs::create_dir(&point)?;
        let mounted = mount_all(&mounts, &point)?;
        let events = listen(&snapshotter.address())?;
        for _ in 0..rounds {
            let file = point.join("x");
            let refused = fill(&file)?;
            let heard = expect(&events, What::Full)?;
            let after = heard.saturating_duration_since(refused);
            println!("{MARK} {kind} {}", in_milliseconds(after));
            fs::remove_file(&file)?;
            expect(&events, What::Below)?;
        }
        drop(events);
        mounted.unmount()?;
        snapshots.remove_made()?;
        drop(snapshots);
        snapshotter.finish()?;
    }
    Ok(())
}

/// Writes until it is refused, and says when that was.
fn fill(path: &Path) -> Result<Instant> {
    let mut file = File::create(path)?;
    let block = [7; 1 << 16];
    loop {
        let written = file.write_all(&block).and_then(|()| file.sync_data());
        if written.is_err() {
            return Ok(Instant::now());
        }
    }
}

type Heard = (Instant, Event);

/// Listens as `snapshotter-quota events --follow` does, on a thread that ends with the daemon.
fn listen(socket: &Path) -> Result<mpsc::Receiver<Heard>> {
    let socket = socket.to_owned();
    let (teller, heard) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    std::thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut client = QuotaClient::new(channel(&socket).await?);
                let request = EventsRequest {
                    name: String::new(),
                    follow: Follow::PastAndFuture.into(),
                };
                let mut stream = client.events(request).await?.into_inner();
                ready.send(())?;
                while let Some(event) = stream.message().await? {
                    teller.send((Instant::now(), event))?;
                }
                anyhow::Ok(())
            })
        })?;
    is_ready
        .recv_timeout(EVENT_LIMIT)
        .context("the daemon did not take a listener")?;
    Ok(heard)
}

/// When that event was heard.
fn expect(events: &mpsc::Receiver<Heard>, what: What) -> Result<Instant> {
    loop {
        let heard = events.recv_timeout(EVENT_LIMIT);
        let (at, event) = heard.with_context(|| format!("no event {what:?}"))?;
        if event.what == i32::from(what) {
            return Ok(at);
        }
    }
}
