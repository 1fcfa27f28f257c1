//! The daemon, put together.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use proto::quota::quota_server::QuotaServer;
use snapshot_core::{
    Driver, Error as CoreError, Kind, OverlayOptions, Service, Snapshots, Threads,
    daemon::{Daemon, Logging, Served, Services, Shutdown},
    metrics as core_metrics, newest_notes, probe_overlay, probe_overlay_in_memory,
};

use crate::{
    Error, Result,
    admin::{self, Admin},
    backends::Backends,
    config::Config,
    containerd::Containerd,
    driver::{Lift, Parts, QuotaDriver},
    events::Events,
    hindrance::Hindrance,
    limit::Policy,
    metrics,
    watch::{self, Auditor, Figures},
};

/// Operators' requests that run at once; they never take the places of containerd's.
const ADMIN_REQUESTS_MAX: usize = 64;

/// Threads of theirs.
const ADMIN_THREADS_MAX: usize = 8;

/// Largest request of an operator: a name and a few values.
const ADMIN_REQUEST_BYTES_MAX: usize = 64 << 10;

/// Reads the configuration again.
pub type Reread = Box<dyn Fn() -> Result<Config> + Send + Sync>;

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// What keeps it from serving.
pub fn serve(config: &Config, reread: Reread) -> Result<()> {
    let policy = config.check()?;
    let logging = Logging::start(config.log, env!("CARGO_CRATE_NAME"))?;
    let daemon = Daemon::claim(&config.settings())?;
    daemon.run(|shutdown| {
        let built = Built::new(config, policy, shutdown)?;
        let reload = Reloader {
            reread,
            logging,
            snapshots: Arc::clone(&built.snapshots),
            driver: Arc::clone(&built.driver),
            in_force: Mutex::new(config.clone()),
        };
        built.served(config, shutdown, reload)
    })
}

/// What serves.
struct Built {
    root: PathBuf,
    snapshots: Arc<Snapshots>,
    driver: Arc<QuotaDriver>,
    events: Arc<Events>,
    figures: Arc<Figures>,
    containerd: Option<Containerd>,
}

impl Built {
    fn new(config: &Config, policy: Policy, shutdown: &Shutdown) -> Result<Self> {
        make(&config.root)?;
        let options = config.backend.options()?;
        let backends = Backends::choose(&config.root, config.backend.kind, &options)?;
        let kind = backends.chosen().kind();
        let root = backends.root().to_owned();
        let overlay = overlay(&root)?;
        let driver = Arc::new(QuotaDriver::new(Parts {
            backends,
            policy,
            on_unsupported: config.backend.on_unsupported,
            overlay,
        }));
        let snapshots = Snapshots::open(&root, Arc::clone(&driver) as Arc<dyn Driver>)?;
        for report in driver.take_reports() {
            if report.corrected > 0 || report.cleared > 0 || !report.strays.is_empty() {
                tracing::warn!(
                    corrected = report.corrected,
                    cleared = report.cleared,
                    strays = ?report.strays,
                    "what was in force was not what should be"
                );
            }
        }
        tracing::info!(
            root = %root.display(),
            back_end = kind.name(),
            snapshots = snapshots.count()?,
            "opened"
        );
        let containerd = config.containerd.as_deref();
        let containerd = containerd.map(|socket| Containerd::new(socket, &config.name));
        let containerd = containerd.transpose()?;
        let events = Arc::default();
        let figures = watch::start(watch::Parts {
            driver: Arc::clone(&driver),
            events: Arc::clone(&events),
            containerd: containerd.clone().filter(|_| config.events.publish),
            poll: Duration::from_secs(config.events.poll_seconds),
            audit: Duration::from_secs(config.events.audit_seconds),
            shutdown: shutdown.clone(),
        });
        Ok(Self {
            root,
            snapshots: Arc::new(snapshots),
            driver,
            events,
            figures,
            containerd,
        })
    }

    fn served(self, config: &Config, shutdown: &Shutdown, reload: Reloader) -> Result<Served> {
        let mut registry = prometheus_client::registry::Registry::with_prefix("snapshotter_quota");
        core_metrics::register(&mut registry, &self.snapshots);
        let sources = metrics::Sources {
            driver: Arc::clone(&self.driver),
            events: Arc::clone(&self.events),
            figures: Arc::clone(&self.figures),
            snapshots_max: config.metrics.snapshots_max,
        };
        metrics::register(&mut registry, sources);
        let threads = config.server.threads();
        let service = Service::new(Arc::clone(&self.snapshots), threads).into_server();
        let admin = Admin::new(admin::Parts {
            root: self.root,
            address: config.address.clone(),
            snapshots: self.snapshots,
            auditor: Auditor {
                driver: Arc::clone(&self.driver),
                events: Arc::clone(&self.events),
                figures: self.figures,
            },
            driver: self.driver,
            events: self.events,
            containerd: self.containerd,
            threads: Threads::new(ADMIN_THREADS_MAX, config.server.limits()),
            shutdown: shutdown.clone(),
        });
        let finish = admin.clone();
        let admin = QuotaServer::new(admin).max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX);
        Ok(Served {
            services: Services::new()
                .with(service, config.server.requests_max)
                .with(admin, ADMIN_REQUESTS_MAX),
            registry,
            reload: Box::new(move || reload.reload()),
            finish: Box::new(move || finish.finish()),
        })
    }
}

fn make(path: &Path) -> Result<(), CoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(CoreError::io("make", path))
}

/// What overlay can do there, and what it needs. Where snapshots are already, a root that takes
/// nothing now is no reason not to serve them.
fn overlay(root: &Path) -> Result<OverlayOptions, CoreError> {
    let empty = root.join("empty");
    let tried = make(&empty).and_then(|()| probe_overlay(root));
    let support = match tried {
        Ok(support) => support,
        Err(error) => {
            let hindrance = Hindrance::of(&error, root);
            let Some(hindrance) = hindrance.filter(|_| has_snapshots(root)) else {
                return Err(error);
            };
            let why = error.in_one_line();
            tracing::warn!(why, %hindrance, "overlayfs is tried in memory");
            probe_overlay_in_memory(root)?
        }
    };
    Ok(OverlayOptions {
        empty_lower: Some(empty).filter(|empty| empty.exists()),
        ..support.options()
    })
}

fn has_snapshots(root: &Path) -> bool {
    newest_notes(root).is_ok_and(|mut notes| notes.next().is_some())
}

/// What SIGHUP does.
struct Reloader {
    reread: Reread,
    logging: Logging,
    snapshots: Arc<Snapshots>,
    driver: Arc<QuotaDriver>,
    in_force: Mutex<Config>,
}

impl Reloader {
    fn reload(&self) -> Result<(), CoreError> {
        let invalid = |error: Error| CoreError::Invalid(error.in_one_line());
        let new = (self.reread)().map_err(invalid)?;
        let policy = new.check().map_err(invalid)?;
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        for key in needs_restart(&in_force, &new) {
            tracing::warn!(key, "a change of the configuration waits for a restart");
        }
        self.logging.set_level(new.log.level);
        in_force.log.level = new.log.level;
        in_force.quota = new.quota;
        self.driver.set_policy(policy);
        // Those that could not be reached last time, too.
        self.relimit_all();
        Ok(())
    }

    /// Defaults and rules count for what is there, too.
    fn relimit_all(&self) {
        for (_, writable) in self.driver.writables().filter(|_| true) {
            let done = self.snapshots.with(&writable.key, |snapshot, directory| {
                match snapshot.info.kind {
                    Kind::Active => self.driver.relimit(snapshot, directory, Lift::Unchanged),
                    Kind::View | Kind::Committed => Ok(()),
                }
            });
            match done {
                // It has been removed meanwhile.
                Ok(()) | Err(CoreError::NotFound(_)) => {}
                Err(error) => tracing::error!(
                    snapshot = writable.key.as_str(),
                    error = error.in_one_line(),
                    "the configuration does not hold for a snapshot: send SIGHUP again to try again"
                ),
            }
        }
    }
}

/// What a running daemon cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let changes = [
        ("root", old.root != new.root),
        ("address", old.address != new.address),
        ("containerd", old.containerd != new.containerd),
        ("name", old.name != new.name),
        ("log.format", old.log.format != new.log.format),
        ("metrics", old.metrics != new.metrics),
        ("server", old.server != new.server),
        ("backend", old.backend != new.backend),
        ("events", old.events != new.events),
    ];
    let changed = changes.into_iter().filter(|(_, is_changed)| *is_changed);
    changed.map(|(key, _)| key).collect()
}
