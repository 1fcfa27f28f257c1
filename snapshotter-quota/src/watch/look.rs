//! Reads what counts against the limits of some snapshots. It may block.

use std::{sync::Arc, time::Instant};

use snapshot_core::{Result, SnapshotId};

use crate::{backend::Charge, driver::QuotaDriver, writables::Writable};

/// A snapshot to look at.
pub(super) type Target = (SnapshotId, Arc<Writable>);

/// What was found of one.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) id: SnapshotId,
    pub(super) of: Arc<Writable>,
    pub(super) at: Instant,
    /// `None` where usage cannot be read without a walk, or nobody can write.
    pub(super) charge: Result<Option<Charge>>,
}

/// What came of one turn.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) seen: Vec<Seen>,
    /// Those for whom no time was left.
    pub(super) left: Vec<SnapshotId>,
}

/// Looks at each, at one at least, until the time is over if there is an end.
pub(super) fn look(driver: &QuotaDriver, targets: Vec<Target>, end: Option<Instant>) -> Looked {
    let mut looked = Looked::default();
    for (id, of) in targets {
        if !looked.seen.is_empty() && end.is_some_and(|end| Instant::now() >= end) {
            looked.left.push(id);
            continue;
        }
        let backend = driver.backends().of(&of.record);
        let charge = backend.and_then(|backend| backend.charge(&of.held(id)));
        looked.seen.push(Seen {
            id,
            of,
            at: Instant::now(),
            charge,
        });
    }
    looked
}
