//! How many requests came, how they ended, how long they took.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::sync::watch;
use tonic::Code;

/// From 50 µs, a resize, to 100 s, a Cleanup of much.
const BUCKETS_SECONDS: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0,
    100.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    method: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: String,
}

/// Shared by all connections.
#[derive(Clone, Debug)]
pub(super) struct RequestMetrics {
    outcomes: Family<Outcome, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
    running: Gauge,
    changes: Arc<watch::Sender<i64>>,
}

/// A request that runs; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Running(RequestMetrics);

impl Drop for Running {
    fn drop(&mut self) {
        let before = self.0.running.dec();
        self.0.changes.send_replace(before - 1);
    }
}

impl RequestMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self {
            outcomes: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS_SECONDS)),
            running: Gauge::default(),
            changes: Arc::new(watch::Sender::new(0)),
        };
        registry.register(
            "requests",
            "Requests answered, by method and gRPC code",
            this.outcomes.clone(),
        );
        registry.register(
            "request_seconds",
            "Time from a request to its answer, waiting included",
            this.seconds.clone(),
        );
        registry.register(
            "requests_running",
            "Requests that are not answered to their end",
            this.running.clone(),
        );
        this
    }

    pub(super) fn begin(&self) -> Running {
        let before = self.running.inc();
        self.changes.send_replace(before + 1);
        Running(self.clone())
    }

    pub(super) fn end(&self, method: &str, code: Code, elapsed: Duration) {
        // A name that nobody serves gets no series of its own: a client could fill memory so.
        let method = match code {
            Code::Unimplemented => "other",
            _ => method,
        };
        let method = Method {
            method: method.to_owned(),
        };
        self.seconds
            .get_or_create(&method)
            .observe(elapsed.as_secs_f64());
        let outcome = Outcome {
            method: method.method,
            code: code_name(code),
        };
        self.outcomes.get_or_create(&outcome).inc();
    }

    /// How many run now.
    pub(super) fn running(&self) -> i64 {
        self.running.get()
    }

    /// Returns when none runs.
    pub(super) async fn none_running(&self) {
        let mut changes = self.changes.subscribe();
        // Two that end at once may tell in the other order, so the count itself decides.
        while self.running() > 0 {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The names of grpc/status.h, as Go's libraries print them.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
