//! gRPC over a unix socket for callers that block: one connection, a limit on every call.

use std::{fmt, future::Future, path::Path, time::Duration};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

/// A connection with the runtime that drives it: only while a call is waited for.
pub(crate) struct Connection {
    runtime: Runtime,
    channel: Channel,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A channel over the socket, to be used within the runtime it is awaited in.
pub async fn channel(socket: &Path) -> Result<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://unix")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("connecting to {}", socket.display()))
}

impl Connection {
    /// Connects to a socket.
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(channel(socket))?;
        Ok(Self { runtime, channel })
    }

    /// What generated clients are made of.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits for something a client does; a status of the client's own at the limit.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        future: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let limited = async { tokio::time::timeout(limit, future).await };
        self.runtime.block_on(limited).unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "no answer within {limit:?}"
            )))
        })
    }

    /// Waits for the answer to a call.
    pub(crate) fn call<T>(
        &self,
        limit: Duration,
        future: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.wait(limit, future).map(Response::into_inner)
    }
}
