//! What the daemon on a host counts beside its requests, for Prometheus.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// What became of a layer that containerd asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is a disk.
    Found,
    /// The stores have none.
    Absent,
    /// No store answered.
    Unreachable,
    /// What a store gave was not what a trusted key had signed.
    Refused,
}

/// What became of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TraceOutcome {
    /// A store has given one.
    Received,
    /// The stores have none.
    Absent,
    /// No store answered.
    Unreachable,
    /// What a store gave was none.
    Refused,
    /// A store has taken one.
    Told,
    /// No store has.
    NotTold,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    outcome: &'static str,
}

/// Shared by all who count.
#[derive(Clone, Debug, Default)]
pub struct Measured(Arc<Metrics>);

#[derive(Debug, Default)]
struct Metrics {
    layers: Family<Label, Counter>,
    fetched_bytes: Counter,
    chunks: Counter,
    damaged: Counter,
    store_failures: Counter,
    proxy_failures: Counter,
    resumed: Counter,
    attached: Counter,
    faults: Counter,
    waits: Counter,
    faults_failed: Counter,
    served_bytes: Counter,
    served_seconds: Seconds,
    watched: Gauge,
    traces: Family<Label, Counter>,
    prefetched_bytes: Counter,
    prefetched_chunks: Counter,
    prefetching: Gauge,
    cache_bytes: Gauge,
    evicted_bytes: Counter,
    evicted_chunks: Counter,
    cache_damaged: Counter,
}

/// From a tenth of a millisecond to a minute and a half.
#[derive(Debug)]
struct Seconds(Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.000_1, 4.0, 11)))
    }
}

impl Measured {
    /// Puts all into a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        let metrics = &*self.0;
        registry.register(
            "layers",
            "Layers that containerd was about to pull, by what became of them: found, absent, unreachable, refused",
            metrics.layers.clone(),
        );
        registry.register(
            "fetched_bytes",
            "Bytes of objects that stores sent",
            metrics.fetched_bytes.clone(),
        );
        registry.register(
            "chunks_fetched",
            "Chunks that were fetched and verified",
            metrics.chunks.clone(),
        );
        registry.register(
            "objects_refused",
            "Objects of stores that were not what their digest or signature says",
            metrics.damaged.clone(),
        );
        registry.register(
            "store_failures",
            "Requests to stores that were not answered, or with an error",
            metrics.store_failures.clone(),
        );
        registry.register(
            "proxy_failures",
            "Requests that the proxy did not answer, or with an error, so that stores were asked directly",
            metrics.proxy_failures.clone(),
        );
        registry.register(
            "transfers_resumed",
            "Answers of which the rest was asked for after their connection broke",
            metrics.resumed.clone(),
        );
        registry.register(
            "disks_attached",
            "Disks that were mounted",
            metrics.attached.clone(),
        );
        self.register_faults(registry);
        self.register_prefetch(registry);
        self.register_cache(registry);
    }

    fn register_prefetch(&self, registry: &mut Registry) {
        let metrics = &*self.0;
        registry.register(
            "traces",
            "Traces of what is read first of disks, by what became of them: received, absent, unreachable, refused, told, not_told",
            metrics.traces.clone(),
        );
        registry.register(
            "prefetched_bytes",
            "Bytes of chunks that were fetched along traces, before anybody read them",
            metrics.prefetched_bytes.clone(),
        );
        registry.register(
            "prefetched_chunks",
            "Chunks that were fetched along traces, before anybody read them",
            metrics.prefetched_chunks.clone(),
        );
        registry.register(
            "prefetch_pending",
            "Chunks that are to be fetched along traces still",
            metrics.prefetching.clone(),
        );
    }

    fn register_cache(&self, registry: &mut Registry) {
        let metrics = &*self.0;
        registry.register(
            "cache_bytes",
            "Bytes that blobs and metadata take of the disk, as they were counted last",
            metrics.cache_bytes.clone(),
        );
        registry.register(
            "evicted_bytes",
            "Bytes that were taken out of the cache, as it was over its limit or the disk was full",
            metrics.evicted_bytes.clone(),
        );
        registry.register(
            "evicted_chunks",
            "Chunks that were taken out of the cache for that",
            metrics.evicted_chunks.clone(),
        );
        registry.register(
            "cache_damaged",
            "Chunks in the cache that were not what their digests say any more",
            metrics.cache_damaged.clone(),
        );
    }

    fn register_faults(&self, registry: &mut Registry) {
        let metrics = &*self.0;
        registry.register(
            "faults",
            "Reads of blobs that are watched, also of what was here",
            metrics.faults.clone(),
        );
        registry.register(
            "fault_waits",
            "Reads that waited until something was fetched",
            metrics.waits.clone(),
        );
        registry.register(
            "faults_failed",
            "Reads that were told EIO, as what they needed could not be had",
            metrics.faults_failed.clone(),
        );
        registry.register(
            "served_bytes",
            "Bytes that were read of blobs that are watched",
            metrics.served_bytes.clone(),
        );
        registry.register(
            "served_seconds",
            "How long such reads waited for their answer",
            metrics.served_seconds.0.clone(),
        );
        registry.register(
            "blobs_watched",
            "Blobs that are mounted and not whole yet",
            metrics.watched.clone(),
        );
    }

    pub(super) fn layer(&self, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Found => "found",
            Outcome::Absent => "absent",
            Outcome::Unreachable => "unreachable",
            Outcome::Refused => "refused",
        };
        self.0.layers.get_or_create(&Label { outcome }).inc();
    }

    pub(super) fn trace(&self, outcome: TraceOutcome) {
        let outcome = match outcome {
            TraceOutcome::Received => "received",
            TraceOutcome::Absent => "absent",
            TraceOutcome::Unreachable => "unreachable",
            TraceOutcome::Refused => "refused",
            TraceOutcome::Told => "told",
            TraceOutcome::NotTold => "not_told",
        };
        self.0.traces.get_or_create(&Label { outcome }).inc();
    }

    pub(super) fn prefetched(&self, bytes: u64) {
        self.0.prefetched_bytes.inc_by(bytes);
        self.0.prefetched_chunks.inc();
    }

    pub(super) fn prefetching(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.0.prefetching.set(count);
    }

    pub(super) fn fetched(&self, bytes: usize) {
        self.0.fetched_bytes.inc_by(bytes as u64);
    }

    pub(super) fn chunk(&self) {
        self.0.chunks.inc();
    }

    pub(super) fn damaged(&self) {
        self.0.damaged.inc();
    }

    pub(super) fn store_failed(&self) {
        self.0.store_failures.inc();
    }

    pub(super) fn proxy_failed(&self) {
        self.0.proxy_failures.inc();
    }

    pub(super) fn resumed(&self) {
        self.0.resumed.inc();
    }

    pub(super) fn attached(&self) {
        self.0.attached.inc();
    }

    pub(super) fn fault(&self) {
        self.0.faults.inc();
    }

    pub(super) fn waits(&self) {
        self.0.waits.inc();
    }

    pub(super) fn fault_failed(&self) {
        self.0.faults_failed.inc();
    }

    pub(super) fn served(&self, bytes: u64, waited: Duration) {
        self.0.served_bytes.inc_by(bytes);
        self.0.served_seconds.0.observe(waited.as_secs_f64());
    }

    pub(super) fn watched(&self, count: usize) {
        self.0.watched.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn cache(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.0.cache_bytes.set(bytes);
    }

    pub(super) fn cache_damaged(&self) {
        self.0.cache_damaged.inc();
    }

    pub(super) fn evicted(&self, bytes: u64, chunks: usize) {
        self.0.evicted_bytes.inc_by(bytes);
        self.0.evicted_chunks.inc_by(chunks as u64);
    }
}
