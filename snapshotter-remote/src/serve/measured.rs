//! What the server counts, for Prometheus.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::convert::Refused;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    object: &'static str,
    code: u16,
}

/// How a conversion, or a request of an NBD client, ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

/// Why there was none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
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
    conversions: Family<Ended, Counter>,
    conversions_running: Gauge,
    conversions_refused: Family<Why, Counter>,
    nbd_requests: Family<Ended, Counter>,
    nbd_sent_bytes: Counter,
    nbd_connections: Gauge,
}

/// Something that goes on; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Counted(Gauge);

/// A conversion that runs.
#[derive(Debug)]
pub(super) struct Converting {
    measured: Measured,
    _running: Counted,
}

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
        registry.register(
            "conversions",
            "Images that were converted because a host asked, by outcome",
            metrics.conversions.clone(),
        );
        registry.register(
            "conversions_running",
            "Conversions that run now",
            metrics.conversions_running.clone(),
        );
        registry.register(
            "conversions_refused",
            "Requests for disks of images that were not converted, by the reason",
            metrics.conversions_refused.clone(),
        );
        this.register_nbd(registry);
        this
    }

    fn register_nbd(&self, registry: &mut Registry) {
        registry.register(
            "nbd_requests",
            "Requests of NBD clients that have a disk open, by outcome",
            self.0.nbd_requests.clone(),
        );
        registry.register(
            "nbd_sent_bytes",
            "Bytes of disks that NBD clients have read",
            self.0.nbd_sent_bytes.clone(),
        );
        registry.register(
            "nbd_connections",
            "Open connections of NBD clients",
            self.0.nbd_connections.clone(),
        );
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

    pub(super) fn conversion_begins(&self) -> Converting {
        Converting {
            measured: self.clone(),
            _running: Counted::of(&self.0.conversions_running),
        }
    }

    pub(super) fn conversion_refused(&self, why: Refused) {
        let why = Why { why: why.name() };
        self.0.conversions_refused.get_or_create(&why).inc();
    }

    pub(super) fn nbd_answered(&self, outcome: &'static str) {
        let outcome = Ended { outcome };
        self.0.nbd_requests.get_or_create(&outcome).inc();
    }

    pub(super) fn nbd_sent(&self, bytes: u64) {
        self.0.nbd_sent_bytes.inc_by(bytes);
    }

    pub(super) fn nbd_opened(&self) -> Counted {
        Counted::of(&self.0.nbd_connections)
    }

    pub(super) fn opened(&self) -> Counted {
        Counted::of(&self.0.connections)
    }
}

impl Converting {
    pub(super) fn ends(self, is_made: bool) {
        let outcome = if is_made { "made" } else { "failed" };
        let outcome = Ended { outcome };
        self.measured.0.conversions.get_or_create(&outcome).inc();
    }
}

impl Counted {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
