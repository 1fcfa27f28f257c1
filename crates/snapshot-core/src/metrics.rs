//! What the store and the sweeper tell of themselves; requests are counted by the daemon.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::Snapshots;

/// Read when it is asked for.
#[derive(Debug)]
struct SnapshotMetrics(Arc<Snapshots>);

/// Adds what the snapshots tell to the metrics of a daemon.
pub fn register(registry: &mut Registry, snapshots: &Arc<Snapshots>) {
    registry.register_collector(Box::new(SnapshotMetrics(Arc::clone(snapshots))));
}

impl Collector for SnapshotMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        // While the store cannot be read there is no number to tell.
        if let Ok(count) = self.0.count() {
            let help = "Snapshots of all kinds";
            put(&mut encoder, "snapshots", help, &gauge(count))?;
        }
        let unswept = gauge(self.0.unswept() as u64);
        let help = "Directories of removed snapshots that are not deleted yet";
        put(&mut encoder, "unswept_directories", help, &unswept)?;
        let figures = self.0.store_figures();
        let commits = ConstCounter::new(figures.commits.load(Ordering::Relaxed));
        let help = "Transactions of the snapshot store";
        put(&mut encoder, "store_commits", help, &commits)?;
        let syncs = ConstCounter::new(figures.syncs.load(Ordering::Relaxed));
        let help = "Calls of fdatasync(2) by the snapshot store";
        put(&mut encoder, "store_syncs", help, &syncs)
    }
}

fn put(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
