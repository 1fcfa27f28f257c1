//! `set` and `lift`.

use std::io::Write;

use proto::quota::{LiftRequest, SetRequest};

use super::{
    arguments::{Lift, Set},
    client::Client,
    print,
    row::{self, SnapshotRow},
};
use crate::Result;

/// The word that takes a label away.
const DEFAULT: &str = "default";

/// `set`
pub(super) fn set(client: &Client, set: &Set) -> Result<()> {
    let value = |text: &Option<String>| {
        let text = text.as_deref()?;
        Some(if text == DEFAULT { "" } else { text }.to_owned())
    };
    let request = SetRequest {
        name: set.key.clone(),
        size: value(&set.size),
        soft_size: value(&set.soft_size),
        inodes: value(&set.inodes),
        warn: value(&set.warn),
        mode: value(&set.mode),
    };
    let answer = client.call(|mut daemon| async move { daemon.set(request).await })?;
    for warning in &answer.warnings {
        // The limit is set; that somebody closed standard error changes nothing about it.
        let _closed = writeln!(std::io::stderr(), "warning: {warning}");
    }
    let rows: Vec<_> = answer.snapshot.into_iter().map(SnapshotRow::from).collect();
    print::out(&row::table(&rows))
}

/// `lift`
pub(super) fn lift(client: &Client, lift: &Lift) -> Result<()> {
    let request = LiftRequest {
        name: lift.key.clone(),
        duration: prost_types::Duration::try_from(lift.duration).ok(),
    };
    let answer = client.call(|mut daemon| async move { daemon.lift(request).await })?;
    let until = answer
        .until
        .and_then(|until| std::time::SystemTime::try_from(until).ok())
        .map_or_else(|| "soon".to_owned(), print::time);
    print::out(&format!("{} has no limit until {until}\n", answer.key))
}
