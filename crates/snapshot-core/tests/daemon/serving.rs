//! The daemon under test: containerd's Events service, whose requests last as long as the test
//! wants.

use std::{fs, path::PathBuf, process::ExitCode};

use proto::events::{
    Envelope, PublishRequest, SubscribeRequest,
    events_server::{Events, EventsServer},
};
use snapshot_core::{
    Error,
    daemon::{Daemon, LogConfig, LogFormat, Logging, Served, ServerConfig, Services, Settings},
};
use tonic::{
    Request, Response, Status, async_trait, codegen::tokio_stream::wrappers::ReceiverStream,
};

/// First argument of this binary when it is to be the daemon.
pub(crate) const WORD: &str = "--daemon-under-test";

/// Says "the fifo that is the topic is open" by opening it, and ends when it is closed.
struct Waiting;

#[async_trait]
impl Events for Waiting {
    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<()>, Status> {
        let topic = PathBuf::from(request.into_inner().topic);
        if topic.as_os_str().is_empty() {
            return Ok(Response::new(()));
        }
        tokio::task::spawn_blocking(move || fs::read(topic))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::not_found(error.to_string()))?;
        Ok(Response::new(()))
    }

    type SubscribeStream = ReceiverStream<Result<Envelope, Status>>;

    /// Nobody asks for it here.
    async fn subscribe(
        &self,
        _: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented("nothing is published here"))
    }
}

/// `ADDRESS CONNECTIONS_MAX CONNECTION_SECONDS REQUESTS_MAX WAIT_SECONDS DRAIN_SECONDS METRICS
/// RELOADED`: the last is a file whose being there decides whether SIGHUP succeeds.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let [
        address,
        connections_max,
        connection_seconds,
        requests_max,
        wait_seconds,
        drain_seconds,
        metrics,
        reloaded,
    ] = arguments
    else {
        return ExitCode::from(2);
    };
    let log = LogConfig {
        format: LogFormat::Json,
        ..LogConfig::default()
    };
    Logging::start(log, "daemon").unwrap();
    let server = ServerConfig {
        connections_max: connections_max.parse().unwrap(),
        connection_seconds: connection_seconds.parse().unwrap(),
        requests_max: requests_max.parse().unwrap(),
        threads_max: 8,
        wait_seconds: wait_seconds.parse().unwrap(),
        drain_seconds: drain_seconds.parse().unwrap(),
        ..ServerConfig::default()
    };
    let settings = Settings {
        address: PathBuf::from(address),
        metrics: Some(metrics.parse().unwrap()),
        server,
    };
    let reloaded = PathBuf::from(reloaded);
    let ended = Daemon::claim(&settings).and_then(|daemon| {
        daemon.run(|_shutdown| {
            Ok::<_, Error>(Served {
                services: Services::new().with(EventsServer::new(Waiting), server.requests_max),
                registry: Default::default(),
                finish: Box::new(|| tracing::info!("put right")),
                reload: Box::new(move || {
                    fs::read(&reloaded)
                        .map(drop)
                        .map_err(Error::io("read", &reloaded))
                }),
            })
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "failed");
            ExitCode::FAILURE
        }
    }
}
