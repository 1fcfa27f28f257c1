//! Whether snapshots are still counted where they should be, and what could not be given back:
//! looked at now and then, and when a person asks.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use snapshot_core::{Error, Key};

use super::{Figures, look::Target};
use crate::{
    backend::{Audit, Record, Stray},
    driver::QuotaDriver,
    events::{Event, Events, What},
    writables::Writable,
};

/// Snapshots that are looked at in one go.
const AT_ONCE: usize = 64;

/// Between two goes others may have the processor.
const BREATH: Duration = Duration::from_millis(20);

/// Who looks.
#[derive(Debug, Clone)]
pub struct Auditor {
    /// Who knows snapshots and back ends.
    pub driver: Arc<QuotaDriver>,
    /// Who is told.
    pub events: Arc<Events>,
    /// Where suspects are kept.
    pub figures: Arc<Figures>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Audited {
    /// Snapshots that were taken out of their account, and how; they were put back.
    pub(crate) escapes: Vec<(Key, String)>,
    /// Accounts without an owner that are still used.
    pub(crate) strays: Vec<Stray>,
    /// Snapshots whose file system lost what was written, and how that was noticed.
    pub(crate) lost: Vec<(Key, String)>,
    /// What could not be looked at.
    pub(crate) errors: Vec<Error>,
}

/// Whether a snapshot could leave its account at all: only projects can be left.
pub(super) fn can_escape(of: &Writable) -> bool {
    matches!(of.record, Record::Prjquota { .. })
}

/// Also an image, which can lose what is written to it.
fn is_audited(of: &Writable) -> bool {
    can_escape(of) || matches!(of.record, Record::Image { .. })
}

impl Auditor {
    /// Looks at everything, puts back what escaped, and gives back what is not used any more.
    /// Blocks.
    pub(crate) fn all(&self) -> Audited {
        let mut found = Audited::default();
        let targets = self.driver.writables().filter(is_audited);
        self.audit(&targets, &mut found);
        self.sweep(&mut found);
        found
    }

    /// The same, a few at a time.
    pub(super) async fn round(self, targets: Vec<Target>) {
        for some in targets.chunks(AT_ONCE) {
            let (this, some) = (self.clone(), some.to_vec());
            blocking(move |found| this.audit(&some, found)).await;
            tokio::time::sleep(BREATH).await;
        }
        blocking(move |found| self.sweep(found)).await;
    }

    fn audit(&self, targets: &[Target], found: &mut Audited) {
        for (id, of) in targets {
            // It may have been removed or committed since.
            let is_there = || self.driver.writables().get(*id).is_some();
            // A back end that does not work was told at the start.
            let Some(backend) = self
                .driver
                .backends()
                .of(&of.record)
                .ok()
                .filter(|_| is_there())
            else {
                continue;
            };
            match backend.audit(&of.held(*id)) {
                Ok(Audit::Sound) => {}
                Ok(Audit::Escaped(how)) => {
                    self.figures.suspect(*id);
                    self.tell(of, &how);
                    found.escapes.push((of.key.clone(), how));
                }
                Ok(Audit::LostWrites(how)) => found.lost.push((of.key.clone(), how)),
                Err(_) if !is_there() => {}
                Err(error) => found.errors.push(error),
            }
        }
    }

    fn tell(&self, of: &Writable, how: &str) {
        self.events.tell(Event {
            time: SystemTime::now(),
            what: What::Escaped,
            key: Some(of.key.clone()),
            usage: None,
            limit: Some(of.limit.clone()),
            text: how.to_owned(),
        });
    }

    fn sweep(&self, found: &mut Audited) {
        let backends = self.driver.backends().all();
        for backend in backends.iter().filter(|backend| backend.quarantined() > 0) {
            match backend.sweep() {
                Ok(report) => {
                    if report.cleared > 0 {
                        tracing::info!(
                            back_end = %backend.kind(),
                            cleared = report.cleared,
                            "what removed snapshots had left was given back"
                        );
                    }
                    found.strays.extend(report.strays);
                }
                Err(error) => found.errors.push(error),
            }
        }
    }
}

/// Escapes are told by then; strays are for those who ask.
async fn blocking(call: impl FnOnce(&mut Audited) + Send + 'static) {
    let done = tokio::task::spawn_blocking(move || {
        let mut found = Audited::default();
        call(&mut found);
        found
    });
    match done.await {
        Ok(found) => {
            for error in found.errors {
                let error = error.in_one_line();
                tracing::warn!(
                    error,
                    "a snapshot was not audited, or leftovers not given back"
                );
            }
        }
        Err(error) => tracing::error!(%error, "nothing was audited"),
    }
}
