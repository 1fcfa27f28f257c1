//! The daemon, put together.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use prometheus_client::registry::Registry;
use snapshot_core::{
    Driver, Error as CoreError, OverlayOptions, Root, Service, Snapshots,
    daemon::{Daemon, Logging, Served, Services, Shutdown},
    metrics as core_metrics, newest_notes, probe_overlay, probe_overlay_in_memory,
};

use super::{
    attach::{self, Attach, Carrier, Choice, Copy, Fuse, Kind, Lazy, Tried},
    client::Client,
    config::{Config, VerifyConfig},
    disks::Disks,
    driver::RemoteDriver,
    fetcher::Fetcher,
    files,
    lazy::{Faults, Means, SLOTS},
    metrics::Measured,
    operator::Operator,
    room::Room,
    unwatched::{self, TakenOver},
};
use crate::{
    error::{Error, Result},
    open_files,
};

/// How often what was fetched is written down, so that a loss of power does not make it be fetched again.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// The back end that was taken last, below the root.
const BACK_END: &str = "back-end";

/// The time of this file below the root is when the whole cache was read last.
const VERIFIED: &str = "verified";

/// How often it is looked whether it is time to read it again.
const SCRUB_LOOK: Duration = Duration::from_secs(600);

/// Requests of operators that run at once.
const OPERATORS_MAX: usize = 16;

/// Two words.
const BACK_END_BYTES_MAX: usize = 256;

/// Reads the configuration again.
pub type Reread = Box<dyn Fn() -> Result<Config> + Send + Sync>;

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// What keeps it from serving.
pub fn serve(config: &Config, reread: Reread) -> Result<()> {
    config.check()?;
    let logging = Logging::start(config.log, env!("CARGO_CRATE_NAME"))?;
    raise_open_files();
    let daemon = Daemon::claim(&config.settings())?;
    daemon.run(|shutdown| {
        let measured = Measured::default();
        // Before readers are taken over: another daemon may be answering them. Until the end, when they are handed on.
        let root = Root::claim(&config.root)?;
        let room = Arc::new(Room::new(config.cache.limits()));
        let disks = disks(config, root.path(), (&room, &measured))?;
        let options = overlay(root.path())?;
        let driver = RemoteDriver::new(options, Arc::clone(&disks), config.store.convert);
        let driver = Arc::new(driver) as Arc<dyn Driver>;
        let snapshots = Arc::new(Snapshots::open_claimed(root.clone(), driver)?);
        tracing::info!(
            root = %root.path().display(),
            snapshots = snapshots.count()?,
            "opened"
        );
        keep_in_sync(Arc::clone(&disks), shutdown.clone());
        let evictor = keep_within(&room, &disks)?;
        let mut registry = Registry::with_prefix("snapshotter_remote");
        core_metrics::register(&mut registry, &snapshots);
        measured.register(&mut registry);
        let threads = config.server.threads();
        scrub(
            config.verify,
            root.path().to_owned(),
            &disks,
            shutdown.clone(),
        );
        let operator = Operator::new(Arc::clone(&disks), Arc::clone(&snapshots), threads.clone());
        let service = Service::new(snapshots, threads).into_server();
        let requests_max = config.server.requests_max;
        let services = Services::new().with(service, requests_max);
        Ok(Served {
            services: services.with(operator.into_server(), OPERATORS_MAX),
            registry,
            reload: Box::new(move || reload(&logging, &reread)),
            finish: Box::new(move || {
                disks.finish();
                // A panic was reported when it happened.
                drop(evictor.join());
                drop(root);
            }),
        })
    })
}

/// The kernel refuses readers, of whom it cannot tell for want of a descriptor.
fn raise_open_files() {
    let wanted = 2 * SLOTS as u64;
    match open_files::raise() {
        Ok(most) if most >= wanted => {}
        Ok(most) => tracing::warn!(
            most,
            wanted,
            "fewer files can be open than readers may wait: raise LimitNOFILE"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

/// The disks, by the back end that works.
fn disks(
    config: &Config,
    root: &Path,
    (room, measured): (&Arc<Room>, &Measured),
) -> Result<Arc<Disks>> {
    let keys = config.store.keys()?;
    let client = Client::new(&config.store, measured.clone())?;
    let fetcher = Arc::new(Fetcher::new(client, Arc::clone(room), measured.clone()));
    // Before all else: readers of an earlier daemon wait.
    let means = || Means {
        source: Arc::clone(&fetcher) as Arc<_>,
        options: config.lazy(),
        measured: measured.clone(),
    };
    let faults = Faults::take_over(root, means())?;
    let taken = TakenOver {
        has_events: faults.as_ref().is_some_and(Faults::has_events),
        is_serving: faults.as_ref().is_some_and(Faults::is_serving),
    };
    unwatched::take_away(root, &keys, taken)?;
    // That works: readers are being answered. Nothing is tried that would need room or time.
    let working = faults
        .as_ref()
        .and_then(|faults| working(config.attach.kind, root, faults));
    let tried = match working {
        Some(tried) => tried,
        None => tried(config.attach.kind, root)?,
    };
    for rejected in &tried.rejected {
        tracing::warn!(back_end = %rejected.kind, why = rejected.why, "a back end does not work here");
    }
    let Some((kind, carrier)) = tried.chosen else {
        return Err(Error::Setting(
            "no back end works here, so disks cannot be mounted: `snapshotter-remote doctor` says why"
                .to_owned(),
        ));
    };
    tracing::info!(back_end = %kind, by = %carrier, "disks are mounted");
    let begun = |faults: Option<Faults>| match faults {
        Some(faults) => Ok(faults),
        None => Faults::new(root, means()),
    };
    let attach: Box<dyn Attach> = match kind {
        Kind::Lazy => {
            let faults = begun(faults)?;
            faults.watch_events(root)?;
            Box::new(Lazy::new(faults))
        }
        Kind::Fuse => {
            let faults = begun(faults)?;
            faults.serve(root)?;
            Box::new(Fuse::new(carrier, faults))
        }
        Kind::Copy => {
            let fetches_max = config.store.fetches_max;
            let source = Arc::clone(&fetcher);
            Box::new(Copy::new(carrier, source, fetches_max, faults))
        }
    };
    let means = (measured.clone(), config.store.fetches_max);
    let disks = Disks::open(root, keys, fetcher, attach, means)?;
    Ok(Arc::new(disks))
}

/// The back end of the daemon before this one, whose readers this answers now, if it may be taken.
fn working(choice: Choice, root: &Path, faults: &Faults) -> Option<Tried> {
    let may_be = |kind| choice == Choice::Auto || choice == Choice::Pinned(kind);
    if faults.has_events() && may_be(Kind::Lazy) {
        return Some(Tried {
            chosen: Some((Kind::Lazy, Carrier::Files)),
            rejected: Vec::new(),
        });
    }
    let kept = files::read(&root.join(BACK_END), BACK_END_BYTES_MAX).ok()??;
    let tried = Tried::parse(&kept, choice)?;
    let is_fuse = matches!(tried.chosen, Some((Kind::Fuse, _)));
    (is_fuse && faults.is_serving()).then_some(tried)
}

/// Tries the back ends. Where there is no room for that, what worked at an earlier start is taken to work still.
fn tried(choice: Choice, root: &Path) -> Result<Tried> {
    let path = root.join(BACK_END);
    let tried = match attach::choose(choice, root) {
        Err(error) if has_no_room(&error) => {
            let kept = files::read(&path, BACK_END_BYTES_MAX)?;
            let kept = kept.and_then(|text| Tried::parse(&text, choice));
            let why = error.in_one_line();
            tracing::warn!(
                why,
                "back ends are not tried: that of an earlier start is taken"
            );
            return kept.ok_or_else(|| error.into());
        }
        tried => tried?,
    };
    if let Some(text) = tried.text()
        && files::read(&path, BACK_END_BYTES_MAX)?.as_deref() != Some(text.as_bytes())
    {
        files::place(&path, text.as_bytes())?;
    }
    Ok(tried)
}

/// What overlay can do there, and what it needs. Where snapshots are already, a root without room is no reason not to
/// serve them.
fn overlay(root: &Path) -> Result<OverlayOptions> {
    let empty = root.join("empty");
    let tried = files::make_directory(&empty).and_then(|()| probe_overlay(root));
    let support = match tried {
        Err(error) if has_no_room(&error) && has_snapshots(root) => {
            let why = error.in_one_line();
            tracing::warn!(why, "overlayfs is tried in memory");
            probe_overlay_in_memory(root)?
        }
        tried => tried?,
    };
    Ok(OverlayOptions {
        empty_lower: Some(empty).filter(|empty| empty.exists()),
        ..support.options()
    })
}

fn has_no_room(error: &CoreError) -> bool {
    let CoreError::Io { source, .. } = error else {
        return false;
    };
    files::is_full(source) || source.kind() == std::io::ErrorKind::ReadOnlyFilesystem
}

fn has_snapshots(root: &Path) -> bool {
    newest_notes(root).is_ok_and(|mut notes| notes.next().is_some())
}

/// Until the daemon ends; the last time is when it has ended.
fn keep_in_sync(disks: Arc<Disks>, shutdown: Shutdown) {
    tokio::spawn(async move {
        let mut ended = std::pin::pin!(shutdown.wait());
        while tokio::time::timeout(SYNC_EVERY, ended.as_mut())
            .await
            .is_err()
        {
            let disks = Arc::clone(&disks);
            // A panic was reported when it happened.
            drop(tokio::task::spawn_blocking(move || disks.sync()).await);
        }
    });
}

/// Reads the whole cache now and then, as slowly as it is told; what is damaged is fetched again.
fn scrub(config: VerifyConfig, root: PathBuf, disks: &Arc<Disks>, shutdown: Shutdown) {
    if config.every_hours == 0 {
        return;
    }
    let disks = Arc::clone(disks);
    tokio::spawn(async move {
        let mut ended = std::pin::pin!(shutdown.wait());
        let mark = root.join(VERIFIED);
        loop {
            let left = config.left(&mark);
            if !left.is_zero() {
                let turn = left.min(SCRUB_LOOK);
                if tokio::time::timeout(turn, ended.as_mut()).await.is_ok() {
                    return;
                }
                continue;
            }
            let (disks, mark) = (Arc::clone(&disks), mark.clone());
            let work = move || disks.scrub(config.bytes_per_second(), &mark);
            // A panic was reported when it happened.
            drop(tokio::task::spawn_blocking(work).await);
            // Also where it could not be noted.
            if tokio::time::timeout(SCRUB_LOOK, ended.as_mut())
                .await
                .is_ok()
            {
                return;
            }
        }
    });
}

/// Takes something out of the cache whenever it has to go, until nothing is fetched any more.
fn keep_within(room: &Arc<Room>, disks: &Arc<Disks>) -> Result<JoinHandle<()>> {
    let (room, disks) = (Arc::clone(room), Arc::clone(disks));
    room.wrote(disks.bytes()?);
    let work = move || {
        while let Some(believed) = room.next() {
            // That is by all that was written: some of it may have gone with its disk.
            let Some(wanted) = disks
                .bytes()
                .map_or(Some(believed), |used| room.measured(used))
            else {
                continue;
            };
            let gone = disks.evict(wanted);
            let used = disks.bytes();
            for error in [gone.as_ref().err(), used.as_ref().err()]
                .into_iter()
                .flatten()
            {
                let why = error.in_one_line();
                tracing::error!(why, "the cache cannot be kept within its limit");
            }
            let bytes = gone.map_or(0, |gone| gone.bytes);
            if bytes < wanted {
                tracing::warn!(wanted, bytes, "the cache has nothing more that may go now");
            }
            room.freed(wanted, bytes, used.ok());
        }
    };
    let thread = std::thread::Builder::new().name("evict".to_owned());
    thread.spawn(work).map_err(|source| Error::File {
        doing: "starting to keep the cache within its limit at",
        path: "evict".into(),
        source,
    })
}

/// What SIGHUP does.
fn reload(logging: &Logging, reread: &Reread) -> Result<(), CoreError> {
    let invalid = |error: Error| CoreError::Invalid(snapshot_core::one_line(&error));
    let config = reread().map_err(invalid)?;
    logging.set_level(config.log.level);
    Ok(())
}
