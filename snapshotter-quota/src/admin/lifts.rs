//! Limits that are taken away for a while, and come back: after that while, or when the daemon
//! ends. After kill -9 the next start sets every limit again.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use snapshot_core::{Error, Key, Names, Snapshot, SnapshotId, Snapshots};

use crate::{
    driver::{Lift, QuotaDriver},
    events::{Event, Events, What},
};

/// Who has a snapshot's name for so long is worth a line in the log.
const WAIT: Duration = Duration::from_secs(60);

/// No request runs any more, or one hangs.
const WAIT_AT_END: Duration = Duration::from_millis(100);

/// Who brings limits back.
#[derive(Debug, Clone)]
pub(super) struct Lifts {
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) driver: Arc<QuotaDriver>,
    pub(super) events: Arc<Events>,
}

/// One that was taken away.
#[derive(Debug, Clone)]
pub(super) struct Lifted {
    pub(super) key: Key,
    pub(super) id: SnapshotId,
    pub(super) until: SystemTime,
}

/// Refuses another snapshot that has the name by now.
pub(super) fn same(snapshot: &Snapshot, id: SnapshotId) -> snapshot_core::Result<()> {
    if snapshot.id == id {
        return Ok(());
    }
    let key = &snapshot.info.name;
    Err(Error::NotFound(format!(
        "{key}, which was removed meanwhile, and made anew"
    )))
}

impl Lifts {
    /// Takes a limit away, by who holds its snapshot's name. Blocks.
    pub(super) fn begin(&self, names: &Names, lifted: &Lifted) -> snapshot_core::Result<()> {
        self.relimit(names, lifted, Lift::Until(lifted.until))?;
        self.tell(
            lifted,
            What::Lifted,
            format!(
                "no limit until {}",
                humantime::format_rfc3339_seconds(lifted.until)
            ),
        );
        Ok(())
    }

    /// Waits, and brings it back.
    pub(super) async fn end(self, lifted: Lifted, duration: Duration) {
        tokio::time::sleep(duration).await;
        let names = loop {
            match self.snapshots.names(&[&lifted.key], None, WAIT).await {
                Ok(names) => break names,
                Err(error) => tracing::warn!(%error, "a lifted limit is not set again yet"),
            }
        };
        let ended = tokio::task::spawn_blocking(move || self.bring_back(&names, &lifted)).await;
        if let Err(error) = ended {
            tracing::error!(%error, "a lifted limit was not set again");
        }
    }

    /// Brings all of them back. Blocks.
    pub(super) fn end_all(&self) {
        for (id, writable) in self
            .driver
            .writables()
            .filter(|one| one.lifted_until.is_some())
        {
            if let Some(until) = writable.lifted_until {
                let lifted = Lifted {
                    key: writable.key.clone(),
                    id,
                    until,
                };
                match self.snapshots.take_names(&[&lifted.key], None, WAIT_AT_END) {
                    Ok(names) => self.bring_back(&names, &lifted),
                    Err(error) => tracing::error!(%error, "a lifted limit was not set again"),
                }
            }
        }
    }

    fn bring_back(&self, names: &Names, lifted: &Lifted) {
        let now = self.driver.writables().get(lifted.id);
        let is_ours = now.is_some_and(|now| now.lifted_until == Some(lifted.until));
        // Gone, or lifted again meanwhile.
        if !is_ours {
            return;
        }
        match self.relimit(names, lifted, Lift::Over) {
            Ok(()) => self.tell(
                lifted,
                What::LimitedAgain,
                "the limit holds again".to_owned(),
            ),
            Err(error) => tracing::error!(
                snapshot = lifted.key.as_str(),
                error = error.in_one_line(),
                "a lifted limit was not set again"
            ),
        }
    }

    fn relimit(&self, names: &Names, lifted: &Lifted, lift: Lift) -> snapshot_core::Result<()> {
        let key = &lifted.key;
        self.snapshots.with_held(names, key, |snapshot, directory| {
            same(snapshot, lifted.id)?;
            self.driver.relimit(snapshot, directory, lift)
        })
    }

    fn tell(&self, lifted: &Lifted, what: What, text: String) {
        let known = self.driver.writables().get(lifted.id);
        self.events.tell(Event {
            time: SystemTime::now(),
            what,
            key: Some(lifted.key.clone()),
            usage: None,
            limit: known.map(|known| known.limit.clone()),
            text,
        });
    }
}
