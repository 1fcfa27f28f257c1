//! What the server counts, for Prometheus.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    object: &'static str,
    code: u16,
}

/// Shared by all connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured(Arc<Metrics>);

#[derive(Debug, Default)]
struct Metrics {
    requests: Family<Outcome, Counter>,
    sent_bytes: Counter,
    answers_failed: Counter,
    connections: Gauge,
    connections_refused: Counter,
    connections_silent: Counter,
    handshakes_failed: Counter,
}

/// A connection that is open; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Measured);

impl Measured {
    /// With everything in that registry.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let metrics = &*this.0;
        registry.register(
            "requests",
            "Requests, by kind of object and status code",
            metrics.requests.clone(),
        );
        registry.register(
            "sent_bytes",
            "Bytes of objects that were given to connections",
            metrics.sent_bytes.clone(),
        );
        registry.register(
            "answers_failed",
            "Answers that were begun and could not be ended, because an object could not be read",
            metrics.answers_failed.clone(),
        );
        registry.register(
            "connections",
            "Open connections",
            metrics.connections.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections that were refused because too many were open",
            metrics.connections_refused.clone(),
        );
        registry.register(
            "connections_silent",
            "Connections that were closed because an answer was not taken, or not ready, in time",
            metrics.connections_silent.clone(),
        );
        registry.register(
            "handshakes_failed",
            "Connections that came to no TLS: no certificate that is let in, or none at all",
            metrics.handshakes_failed.clone(),
        );
        this
    }

    pub(super) fn answered(&self, object: &'static str, code: u16) {
        let outcome = Outcome { object, code };
        self.0.requests.get_or_create(&outcome).inc();
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.0.sent_bytes.inc_by(bytes as u64);
    }

    pub(super) fn failed(&self) {
        self.0.answers_failed.inc();
    }

    pub(super) fn refused(&self) {
        self.0.connections_refused.inc();
    }

    pub(super) fn silent(&self) {
        self.0.connections_silent.inc();
    }

    pub(super) fn handshake_failed(&self) {
        self.0.handshakes_failed.inc();
    }

    pub(super) fn opened(&self) -> Open {
        self.0.connections.inc();
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.connections.dec();
    }
}
