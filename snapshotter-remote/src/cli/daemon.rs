//! Calls to the daemon of this host, one after the other.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use proto::remote::remote_client::RemoteClient;
use tokio::runtime::{Builder, Runtime};
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::error::{Error, Result};

/// How long it may take to be connected to.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection to it, and the loop that it runs in.
#[derive(Debug)]
pub(super) struct Daemon {
    runtime: Runtime,
    channel: Channel,
    address: PathBuf,
}

impl Daemon {
    /// The one at that socket.
    pub(super) fn connect(address: &Path) -> Result<Self> {
        let refused = |why: String| {
            Error::Setting(format!(
                "no daemon serves {} ({why}): systemctl start snapshotter-remote, or name its socket by --address",
                address.display()
            ))
        };
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| refused(error.to_string()))?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", address.display()));
        let endpoint = endpoint.map_err(|error| refused(error.to_string()))?;
        let endpoint = endpoint.connect_timeout(CONNECT);
        let channel = runtime.block_on(endpoint.connect());
        let channel = channel.map_err(|error| refused(snapshot_core::one_line(&error)))?;
        Ok(Self {
            runtime,
            channel,
            address: address.to_owned(),
        })
    }

    /// One call.
    pub(super) fn call<T, F>(&self, call: impl FnOnce(RemoteClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = RemoteClient::new(self.channel.clone());
        let answered = self.runtime.block_on(call(client));
        answered
            .map(Response::into_inner)
            .map_err(|status| self.failed(&status))
    }

    /// The next message of a stream; none at its end.
    pub(super) fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>> {
        let next = self.runtime.block_on(stream.message());
        next.map_err(|status| self.failed(&status))
    }

    fn failed(&self, status: &Status) -> Error {
        let address = self.address.display();
        Error::Setting(match status.code() {
            Code::Unimplemented => {
                format!("what serves {address} is no snapshotter-remote, or an older one")
            }
            Code::Unavailable if status.message().is_empty() => {
                format!("the daemon at {address} has gone: see its log")
            }
            _ => status.message().to_owned(),
        })
    }
}
