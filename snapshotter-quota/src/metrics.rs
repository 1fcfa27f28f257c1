//! What Prometheus is told about limits; the core tells of requests and the store. Everything is
//! read when it is asked for, by a few system calls for each snapshot, and nothing walks.

use std::{collections::BTreeSet, fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};
use snapshot_core::SnapshotId;

use crate::{
    backend::{Charge, Record},
    driver::QuotaDriver,
    events::Events,
    watch::Figures,
    writables::Writable,
};

/// Where the numbers are.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Snapshots and back ends.
    pub driver: Arc<QuotaDriver>,
    /// What happened.
    pub events: Arc<Events>,
    /// What the watch does.
    pub figures: Arc<Figures>,
    /// Snapshots that have series of their own, the oldest first.
    pub snapshots_max: usize,
}

/// Adds all of it.
pub fn register(registry: &mut Registry, sources: Sources) {
    let kind = sources.driver.backends().chosen().kind().name();
    registry.register(
        "back_end",
        "The back end that new snapshots are made with",
        Info::new([("kind", kind)]),
    );
    registry.register_collector(Box::new(sources));
}

/// One gauge for each snapshot that has it.
type Value = fn(&Row) -> Option<u64>;

struct Row {
    id: SnapshotId,
    writable: Arc<Writable>,
    charge: Option<Charge>,
}

/// In a group, all of them are those of the group.
const GAUGES: [(&str, &str, Value); 5] = [
    (
        "limit_bytes",
        "Most bytes a writable snapshot may hold",
        |row| match row.writable.record.group() {
            Some(_) => row.charge?.bytes_max,
            None => Some(row.writable.limit.bytes?.bytes().get()),
        },
    ),
    (
        "limit_inodes",
        "Most inodes a writable snapshot may hold",
        |row| match row.writable.record.group() {
            Some(_) => row.charge?.inodes_max,
            None => Some(row.writable.limit.inodes?.count().get()),
        },
    ),
    (
        "used_bytes",
        "Bytes that count against the limit of a writable snapshot",
        |row| Some(row.charge?.usage.bytes),
    ),
    (
        "used_inodes",
        "Inodes that count against the limit of a writable snapshot",
        // btrfs does not count them.
        |row| Some(row.charge?.usage.inodes).filter(|inodes| *inodes > 0),
    ),
    (
        "limit_lifted",
        "1 while the limit of a snapshot is taken away",
        |row| Some(u64::from(row.writable.lifted_until.is_some())),
    ),
];

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (rows, left_out) = self.rows();
        for (name, help, value) in GAUGES {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            each(metric, &rows, value)?;
        }
        self.encode_gauges(&mut encoder, left_out)?;
        self.encode_counters(&mut encoder)?;
        let help = "Things that happened to limits, by kind";
        let mut metric = encoder.encode_descriptor("events", help, None, MetricType::Counter)?;
        for (what, count) in self.events.counts() {
            let labels = [("what", what.word())];
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Sources {
    /// Writable snapshots with a limit, and how many of them are left out.
    fn rows(&self) -> (Vec<Row>, usize) {
        let is_limited = |one: &Writable| one.is_limited() || one.record.group().is_some();
        let limited = self.driver.writables().filter(is_limited);
        let left_out = limited.len().saturating_sub(self.snapshots_max);
        let shown = limited.into_iter().take(self.snapshots_max);
        let rows = shown.map(|(id, writable)| Row {
            charge: self.charge(id, &writable),
            id,
            writable,
        });
        (rows.collect(), left_out)
    }

    /// `None` as well for one that is going.
    fn charge(&self, id: SnapshotId, writable: &Writable) -> Option<Charge> {
        let backend = self.driver.backends().of(&writable.record).ok()?;
        backend.charge(&writable.held(id)).ok()?
    }

    fn encode_gauges(&self, encoder: &mut DescriptorEncoder<'_>, left_out: usize) -> fmt::Result {
        let backends = self.driver.backends().all();
        let quarantined = backends.iter().map(|backend| backend.quarantined()).sum();
        let gauges: [(&str, &str, usize); 5] = [
            (
                "snapshots_left_out",
                "Snapshots with a limit that have no series: metrics.snapshots_max",
                left_out,
            ),
            (
                "accounts",
                "Projects, quota groups, images and tmpfs of writable snapshots",
                self.accounts(),
            ),
            (
                "quarantined",
                "Accounts that no snapshot owns and that are still used",
                quarantined,
            ),
            (
                "escape_suspects",
                "Writable snapshots of which a file was found outside of its account",
                self.figures.suspects(),
            ),
            (
                "kernel_tells",
                "1 where the kernel tells of limits that are reached",
                self.figures.hears().into(),
            ),
        ];
        for (name, help, value) in gauges {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge(value as u64).encode(metric)?;
        }
        Ok(())
    }

    fn encode_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let figures = &self.figures;
        let counters = [
            (
                "refused_writes",
                "Refused writes that the kernel told of: each on xfs, the first of each time on ext4",
                figures.refused(),
            ),
            ("looks", "How often usage was looked at", figures.looks()),
            (
                "looks_failed",
                "How often that did not work",
                figures.looks_failed(),
            ),
            (
                "published",
                "Events that containerd took",
                figures.published(),
            ),
            (
                "unpublished",
                "Events that containerd did not take",
                figures.unpublished(),
            ),
        ];
        for (name, help, value) in counters {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        Ok(())
    }

    /// Members of a group share one.
    fn accounts(&self) -> usize {
        let writables = self.driver.writables().filter(|_| true);
        let accounts: BTreeSet<_> = writables
            .iter()
            .filter_map(|(id, one)| match &one.record {
                Record::Plain => None,
                Record::Prjquota { project, .. } => Some(("project", u64::from(*project))),
                Record::Btrfs {
                    shared: Some(shared),
                    ..
                } => Some(("shared", shared.number)),
                Record::Btrfs { subvolume, .. } => Some(("subvolume", *subvolume)),
                Record::Image { .. } | Record::Tmpfs { .. } => Some(("own", id.0)),
            })
            .collect();
        accounts.len()
    }
}

fn gauge(value: u64) -> ConstGauge {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn each(mut metric: MetricEncoder<'_>, rows: &[Row], value: Value) -> fmt::Result {
    for row in rows {
        let Some(number) = value(row) else {
            continue;
        };
        let id = row.id.to_string();
        let labels = [("key", row.writable.key.as_str()), ("id", &id)];
        gauge(number).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
