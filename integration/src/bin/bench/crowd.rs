//! Many requests at once over one connection. It makes snapshots and measures how long all took.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::{conformance::Target, grpc::channel};
use proto::snapshots::{PrepareSnapshotRequest, snapshots_client::SnapshotsClient};
use tokio::{runtime, task::JoinSet};
use tonic::Request;

use crate::scene::labels;

/// Makes snapshots with those keys on one parent, all at once, and says how long that took.
pub(crate) fn prepare_all(target: &Target, parent: &str, keys: Vec<String>) -> Result<Duration> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(ask_all(target, parent, keys))
}

async fn ask_all(target: &Target, parent: &str, keys: Vec<String>) -> Result<Duration> {
    let client = SnapshotsClient::new(channel(&target.socket).await?);
    let mut requests = Vec::new();
    for key in keys {
        let mut request = Request::new(PrepareSnapshotRequest {
            snapshotter: target.snapshotter.clone(),
            key,
            parent: parent.to_owned(),
            labels: labels(1 << 30),
        });
        if let Some(namespace) = &target.namespace {
            let namespace = namespace.parse().context("a namespace")?;
            request
                .metadata_mut()
                .insert("containerd-namespace", namespace);
        }
        requests.push(request);
    }
    let started = Instant::now();
    let mut running = JoinSet::new();
    for request in requests {
        let mut client = client.clone();
        running.spawn(async move { client.prepare(request).await.map(drop) });
    }
    while let Some(ended) = running.join_next().await {
        ended?.context("Prepare among many")?;
    }
    Ok(started.elapsed())
}
