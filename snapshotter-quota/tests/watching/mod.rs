//! A watch over the snapshots of a test, on a thread of its own, and what it tells.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use snapshot_core::{
    Key, OverlayOptions, Owners, SnapshotId,
    daemon::{Shutdown, Trigger},
};
use snapshotter_quota::{
    backend::{Kind, Options},
    backends::Backends,
    config::{Choice, OnUnsupported},
    driver::{self, QuotaDriver},
    events::{Event, Events, What},
    limit::{Limit, Policy},
    watch::{self, Figures},
    writables::Writable,
};

use super::rig::store::Made;

/// Longer than any event takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A running watch; ended when dropped.
pub(crate) struct Watching {
    pub(crate) driver: Arc<QuotaDriver>,
    pub(crate) figures: Arc<Figures>,
    told: mpsc::Receiver<(Instant, Event)>,
    trigger: Option<Trigger>,
    thread: Option<JoinHandle<()>>,
}

/// How often it looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) poll: Duration,
    pub(crate) audit: Duration,
}

impl Pace {
    /// As often as can be configured.
    pub(crate) const OFTEN: Self = Self {
        poll: Duration::from_secs(1),
        audit: Duration::from_secs(3600),
    };
    /// So seldom that whatever is told came from the kernel.
    pub(crate) const NEVER: Self = Self {
        poll: Duration::from_secs(3600),
        audit: Duration::from_secs(3600),
    };
}

impl Watching {
    pub(crate) fn start(root: &Path, kind: Kind, pace: Pace) -> Self {
        let driver = Arc::new(QuotaDriver::new(driver::Parts {
            backends: Backends::choose(root, Choice::Only(kind), &Options::default()).unwrap(),
            policy: Policy::default(),
            on_unsupported: OnUnsupported::Fail,
            overlay: OverlayOptions {
                index_off: true,
                user_xattr: false,
                volatile: false,
                owners: Owners::MappedByMount,
                empty_lower: None,
            },
        }));
        let (trigger, shutdown) = Shutdown::channel();
        let events = Arc::new(Events::default());
        let (started, figures) = mpsc::channel();
        let (teller, told) = mpsc::channel();
        let parts = watch::Parts {
            driver: Arc::clone(&driver),
            events: Arc::clone(&events),
            containerd: None,
            poll: pace.poll,
            audit: pace.audit,
            shutdown: shutdown.clone(),
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (_, mut future) = events.listen();
                started.send(watch::start(parts)).unwrap();
                let forward = async {
                    while let Ok(event) = future.recv().await {
                        // The test has seen enough.
                        let _ended = teller.send((Instant::now(), event));
                    }
                };
                tokio::select! {
                    () = forward => {}
                    () = shutdown.wait() => {}
                }
            });
        });
        Self {
            driver,
            figures: figures.recv_timeout(LIMIT).unwrap(),
            told,
            trigger: Some(trigger),
            thread: Some(thread),
        }
    }

    /// As the driver does when it has made a snapshot.
    pub(crate) fn put(&self, made: &Made, limit: &Limit) {
        let (directory, record) = (made.directory.clone(), made.record.clone());
        let writable = Writable::new(key(made.id), directory, record, limit.clone());
        self.driver.writables().put(made.id, writable);
    }

    /// The next event, which must be this one; and when it was heard.
    pub(crate) fn expect(&self, made: &Made, what: What) -> (Instant, Event) {
        let (at, event) = self.told.recv_timeout(LIMIT).unwrap();
        assert_eq!(
            (event.key.as_ref(), event.what),
            (Some(&key(made.id)), what),
            "{event:?}"
        );
        (at, event)
    }

    /// The next event, of whatever snapshot.
    pub(crate) fn next(&self) -> Event {
        self.told.recv_timeout(LIMIT).unwrap().1
    }

    /// Ends it, and proves that nothing else was told.
    pub(crate) fn end(mut self) {
        self.stop();
        let more: Vec<_> = self.told.try_iter().collect();
        assert!(more.is_empty(), "{more:?}");
    }

    fn stop(&mut self) {
        drop(self.trigger.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        drop(self.trigger.take());
        if let Some(thread) = self.thread.take() {
            // It panicked: the test tells of its own failure first.
            let _failed = thread.join();
        }
    }
}

fn key(id: SnapshotId) -> Key {
    Key::new(format!("ns/{id}/web")).unwrap()
}
