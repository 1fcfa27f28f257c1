//! What the daemon on a host counts beside its requests, for Prometheus.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
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
    attached: Counter,
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
            "disks_attached",
            "Disks that were mounted",
            metrics.attached.clone(),
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

    pub(super) fn attached(&self) {
        self.0.attached.inc();
    }
}
