//! Clients at work, a daemon that is killed again and again, and what must be there each time.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    conformance::Snapshots,
    process::{command, output_of},
    random::Random,
    runtime::built,
    snapshotter::{Setup, Snapshotter},
    wait::{SOON, Sources, until},
};
use proto::snapshots::{Info, Kind};
use serde::Deserialize;

use crate::{
    act::{act, be_limited},
    model::Model,
    operation::{Operation, Outcome},
    place::Place,
    rules::BackEnd,
};

const CLIENTS: u64 = 8;

/// A life of the daemon has this many operations, on average.
const OPERATIONS_PER_KILL: u64 = 40;

/// After the last answer it is killed within so long.
const MOMENT_US_MAX: u64 = 3000;

/// A start takes so long, about.
const START_US: u64 = 200_000;

/// What a whole storm was.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    operations: u64,
    kills: u64,
    kills_at_start: u64,
    unanswered: u64,
    refused: u64,
    took: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operations,
            kills,
            kills_at_start,
            unanswered,
            refused,
            took,
        } = self;
        write!(
            f,
            "{operations} operations ({refused} refused, {unanswered} unanswered), {kills} kills \
             and {kills_at_start} more at a start, in {} s",
            took.as_secs()
        )
    }
}

/// One daemon and its clients.
#[derive(Debug)]
struct Storm {
    place: Place,
    snapshotter: Snapshotter,
    model: Mutex<Model>,
    left: AtomicU64,
    /// Set before the daemon is killed.
    is_struck: AtomicBool,
    unanswered: AtomicU64,
    refused: AtomicU64,
    metrics: PathBuf,
    /// Holds the socket of the metrics.
    _directory: tempfile::TempDir,
}

/// What `ls` tells of a snapshot.
#[derive(Debug, Deserialize)]
struct Row {
    key: String,
    id: u64,
    limit_bytes: Option<u64>,
}

/// What `doctor` tells.
#[derive(Debug, Deserialize)]
struct Finding {
    severity: String,
    what: String,
}

/// So many operations on one back end, with kills between and within them. In the end all is
/// removed, and nothing may be left.
pub(crate) fn weather(
    place: Place,
    back_end: BackEnd,
    operations: u64,
    seed: u64,
) -> Result<Figures> {
    let started = Instant::now();
    let storm = Storm::begin(place, back_end, operations)?;
    let mut random = Random::new(seed);
    let mut figures = Figures {
        operations,
        ..Figures::default()
    };
    let outcome = storm.blow(&mut random, &mut figures);
    outcome
        .with_context(|| format!("{figures}; the log ends:\n{}", storm.snapshotter.log_tail()))?;
    figures.unanswered = storm.unanswered.load(Ordering::Relaxed);
    figures.refused = storm.refused.load(Ordering::Relaxed);
    storm.end()?;
    figures.took = started.elapsed();
    Ok(figures)
}

impl Storm {
    fn begin(place: Place, back_end: BackEnd, operations: u64) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("storm-").tempdir()?;
        let metrics = directory.path().join("metrics");
        let mut config = format!(
            "[backend]\nkind = \"{}\"\n[metrics]\naddress = \"unix:{}\"\n",
            back_end.name(),
            metrics.display()
        );
        if back_end == BackEnd::Pool {
            config = config.replace("[metrics]", "pool_size = \"1g\"\n[metrics]");
        }
        let setup = Setup {
            root: place.root(),
            ..Setup::quota(&config)?
        };
        Ok(Self {
            place,
            snapshotter: Snapshotter::start(setup)?,
            model: Mutex::new(Model::new(back_end)),
            left: AtomicU64::new(operations),
            is_struck: AtomicBool::new(false),
            unanswered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            metrics,
            _directory: directory,
        })
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blow(&self, random: &mut Random, figures: &mut Figures) -> Result<()> {
        while self.left.load(Ordering::Relaxed) > 0 {
            self.live(random)?;
            figures.kills += 1;
            while random.below(4) == 0 {
                figures.kills_at_start += self.die_at_start(random)?;
            }
            self.snapshotter.start_again()?;
            self.take_stock()?;
        }
        Ok(())
    }

    /// One life of the daemon.
    fn live(&self, random: &mut Random) -> Result<()> {
        self.is_struck.store(false, Ordering::SeqCst);
        let (teller, told) = channel();
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| random.next_bits()).collect();
        thread::scope(|scope| {
            let clients: Vec<_> = seeds
                .into_iter()
                .map(|seed| {
                    let teller = teller.clone();
                    scope.spawn(move || self.work(Random::new(seed), &teller))
                })
                .collect();
            drop(teller);
            let struck = self.strike(&told, random);
            let worked = clients
                .into_iter()
                .map(|client| client.join().expect("a client does not panic"));
            worked.chain([struck]).collect::<Result<Vec<()>>>()
        })?;
        Ok(())
    }

    /// Waits for some answers and a moment more, and kills the daemon.
    fn strike(&self, told: &Receiver<()>, random: &mut Random) -> Result<()> {
        let answers = random.below(2 * OPERATIONS_PER_KILL);
        let moment = Duration::from_micros(random.below(MOMENT_US_MAX));
        for _ in 0..answers {
            if told.recv().is_err() {
                break;
            }
        }
        let until = Instant::now() + moment;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) =
                told.recv_timeout(left)
            {
                break;
            }
        }
        self.is_struck.store(true, Ordering::SeqCst);
        self.snapshotter.kill9()
    }

    /// What a client does until the daemon is killed, or all is done.
    fn work(&self, mut random: Random, teller: &Sender<()>) -> Result<()> {
        be_limited()?;
        let client = match Snapshots::connect(&self.snapshotter.target()) {
            Err(_) if self.is_struck.load(Ordering::SeqCst) => return Ok(()),
            connected => connected?,
        };
        let take = |left: u64| left.checked_sub(1);
        while !self.is_struck.load(Ordering::SeqCst)
            && self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
                .is_ok()
        {
            let step = {
                let mut model = self.model();
                let operation = model.choose(&mut random);
                model.begin(operation)
            };
            let outcome = match act(&client, &step.operation) {
                Ok(answer) => Outcome::Done(answer),
                Err(_) if self.is_struck.load(Ordering::SeqCst) => {
                    self.unanswered.fetch_add(1, Ordering::Relaxed);
                    Outcome::Lost
                }
                Err(status) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    Outcome::Refused(status)
                }
            };
            self.model().learn(step, outcome)?;
            // Who kills may have heard enough.
            teller.send(()).ok();
        }
        Ok(())
    }

    /// Starts the daemon and kills it before it is ready, mostly: 1 when that was so.
    fn die_at_start(&self, random: &mut Random) -> Result<u64> {
        let moment = Duration::from_micros(random.below(START_US));
        let (teller, told) = channel::<()>();
        let started = thread::scope(|scope| {
            let starting = scope.spawn(move || {
                let started = self.snapshotter.start_again();
                drop(teller);
                started
            });
            // It ends early when the daemon is ready early.
            told.recv_timeout(moment).ok();
            let killed = self.snapshotter.kill9();
            let started = starting.join().expect("a start does not panic");
            killed.map(|()| started)
        })?;
        // Killed before it was there at all.
        self.snapshotter.kill9()?;
        Ok(u64::from(started.is_err()))
    }

    /// What nobody was told is learned; all that was told must be there, whole.
    fn take_stock(&self) -> Result<()> {
        let client = Snapshots::connect(&self.snapshotter.target())?;
        let infos = client.list(&[])?.into_iter();
        let there: BTreeMap<String, Info> = infos.map(|info| (info.name.clone(), info)).collect();
        let mut model = self.model();
        model.settle(&there)?;
        model.compare_all(&there)?;
        self.compare_rows(&mut model)?;
        let names: Vec<(String, Kind)> = model
            .known
            .iter()
            .map(|(name, known)| (name.clone(), known.kind))
            .collect();
        for (key, kind) in names {
            let operation = match kind {
                Kind::Committed => Operation::Usage { key },
                _ => {
                    let layers = model.layers(&key);
                    Operation::Mounts { key, layers }
                }
            };
            let step = model.begin(operation);
            let outcome = match act(&client, &step.operation) {
                Ok(answer) => Outcome::Done(answer),
                Err(status) => Outcome::Refused(status),
            };
            model.learn(step, outcome)?;
        }
        Ok(())
    }

    /// What the operator is shown: numbers and limits.
    fn compare_rows(&self, model: &mut Model) -> Result<()> {
        let listed = output_of(self.operate("ls").arg("--all"), SOON)?;
        let rows: Vec<Row> = serde_json::from_str(&listed).context("reading ls")?;
        let ids = rows.iter().map(|row| (row.key.clone(), row.id)).collect();
        model.compare_ids(&ids)?;
        let root = self.snapshotter.root();
        for row in &rows {
            let Some(limit) = model.limit(&row.key) else {
                continue;
            };
            let has_grown = self.place.may_have_grown() && row.limit_bytes > limit;
            let shown = limit.is_none() || row.limit_bytes == limit || has_grown;
            ensure!(shown, "{row:?} has the limit {limit:?}");
            let held = self.place.check_limit(&root, row.id, limit);
            held.with_context(|| row.key.clone())?;
        }
        Ok(())
    }

    /// The operator's command.
    fn operate(&self, word: &str) -> Command {
        let program = built("snapshotter-quota").unwrap_or_else(|_| "snapshotter-quota".into());
        let mut operate = command(program);
        operate.args([word, "--output", "json", "--config"]);
        operate.arg(self.snapshotter.config_file());
        operate.arg("--address").arg(self.snapshotter.address());
        operate
    }

    /// Removes everything. Nothing is left.
    fn end(self) -> Result<()> {
        let cleared = self.clear();
        cleared.with_context(|| format!("the log ends:\n{}", self.snapshotter.log_tail()))?;
        self.snapshotter.stop()?;
        let root = self.snapshotter.root();
        self.place.check_nothing_is_left(&root)?;
        self.snapshotter.finish()
    }

    fn clear(&self) -> Result<()> {
        let client = Snapshots::connect(&self.snapshotter.target())?;
        let mut model = self.model();
        while !model.known.is_empty() {
            let names: Vec<String> = model.known.keys().cloned().collect();
            let leaves = names
                .into_iter()
                .filter(|name| model.children(name).next().is_none());
            for key in leaves.collect::<Vec<_>>() {
                client
                    .remove(&key)
                    .with_context(|| format!("removing {key}"))?;
                model.known.remove(&key);
            }
        }
        client.cleanup()?;
        self.wait_until_nothing_is_kept()
    }

    /// The doctor finds nothing, and the metrics say 0. btrfs drops subvolumes behind their removal,
    /// and their accounts with them; the doctor looks again.
    fn wait_until_nothing_is_kept(&self) -> Result<()> {
        let mut found = Vec::new();
        let what = "the doctor finds nothing and no account is kept";
        until(what, SOON, Sources::none(), || {
            self.place.settle(&self.snapshotter.root())?;
            let told = output_of(&mut self.operate("doctor"), SOON)?;
            found = serde_json::from_str(&told).context("reading what the doctor found")?;
            found.retain(|finding: &Finding| {
                finding.severity == "error" || finding.what.contains("belongs to no snapshot")
            });
            let metrics = self.metrics()?;
            for name in [
                "accounts",
                "quarantined",
                "unswept_directories",
                "snapshots",
            ] {
                let name = format!("snapshotter_quota_{name} ");
                let line = metrics.lines().find(|line| line.starts_with(&name));
                let line = line.with_context(|| format!("there is no {name}"))?;
                if line.trim_end() != format!("{name}0") {
                    let (severity, what) = ("metric".to_owned(), line.to_owned());
                    found.push(Finding { severity, what });
                }
            }
            Ok(found.is_empty().then_some(()))
        })
        .with_context(|| format!("{found:#?}"))
    }

    fn metrics(&self) -> Result<String> {
        let mut socket = UnixStream::connect(&self.metrics)?;
        socket.set_read_timeout(Some(SOON))?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: quota\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(text)
    }
}
