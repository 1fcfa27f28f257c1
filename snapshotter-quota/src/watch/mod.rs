//! Finds out when a snapshot comes near its limit, and whether one left its account. It changes no
//! limit.
//!
//! ```text
//!  kernel (netlink, ext4 and xfs) --refused--+
//!                                            +--> watched --> Events --> log, streams, containerd
//!  agenda --> look (a few system calls) -----+    (pure)
//! ```
//!
//! Nothing wakes up while nobody has a limit. A snapshot is looked at now and then only when looking
//! can tell something that the kernel does not: with thresholds, on a back end of which the kernel
//! tells nothing, or until it is below its limit again.

pub(crate) mod audit;
mod figures;
mod gauge;
mod kernel;
mod look;
mod pace;
mod publish;
mod watched;
mod watcher;

use std::{sync::Arc, time::Duration};

use snapshot_core::daemon::Shutdown;

pub use self::{audit::Auditor, figures::Figures};
use self::{kernel::Kernel, watcher::Watcher};
use crate::{containerd::Containerd, driver::QuotaDriver, events::Events};

/// What a watch works with.
#[derive(Debug)]
pub struct Parts {
    /// Whose snapshots.
    pub driver: Arc<QuotaDriver>,
    /// Who is told.
    pub events: Arc<Events>,
    /// Who else is told.
    pub containerd: Option<Containerd>,
    /// Longest time for which usage is not looked at, where looking is needed.
    pub poll: Duration,
    /// Time between two searches for snapshots that left their account.
    pub audit: Duration,
    /// When it ends.
    pub shutdown: Shutdown,
}

/// Starts it inside a runtime, which owns its tasks, and gives what can be told of it.
pub fn start(parts: Parts) -> Arc<Figures> {
    let figures = Arc::new(Figures::default());
    let kernel = match Kernel::listen() {
        Ok(kernel) => Some(kernel),
        Err(error) => {
            tracing::info!(%error, "the kernel does not tell of limits here; usage is looked at");
            None
        }
    };
    figures.set_hearing(kernel.is_some());
    if let Some(containerd) = parts.containerd {
        // Subscribed here, so that nothing is missed before the task runs.
        let (_, future) = parts.events.listen();
        let publisher = publish::Publisher::new(containerd, Arc::clone(&figures));
        tokio::spawn(publisher.run(future, parts.shutdown.clone()));
    }
    let watcher = Watcher::new(watcher::Parts {
        driver: parts.driver,
        events: parts.events,
        figures: Arc::clone(&figures),
        poll: parts.poll,
        audit: parts.audit,
    });
    tokio::spawn(watcher.run(kernel, parts.shutdown));
    figures
}
