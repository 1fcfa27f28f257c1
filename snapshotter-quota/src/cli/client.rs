//! Calls to the daemon, one after the other.

use std::path::{Path, PathBuf};

use proto::quota::quota_client::QuotaClient;
use tokio::runtime::{Builder, Runtime};
use tonic::{Code, Response, Status, Streaming, transport::Channel};

use crate::{Error, Result, containerd::endpoint};

/// A connection to the daemon, and the loop it runs in.
#[derive(Debug)]
pub(super) struct Client {
    runtime: Runtime,
    channel: Channel,
    address: PathBuf,
}

/// What a call gives.
type Answer<T> = Result<Response<T>, Status>;

impl Client {
    pub(super) fn new(address: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(
            snapshot_core::Error::io("start the event loop for", address),
        )?;
        // A stream of events lasts; so no limit on the call itself.
        let endpoint = endpoint(address)?.timeout(FOREVER);
        let channel = runtime
            .block_on(endpoint.connect())
            .map_err(|error| Error::Unreachable {
                who: "the daemon",
                address: address.to_owned(),
                advice: match is_denied(&error) {
                    true => "run as root",
                    false => {
                        "start it by `snapshotter-quota serve`, or name its socket by --address"
                    }
                },
                source: error.into(),
            })?;
        Ok(Self {
            runtime,
            channel,
            address: address.to_owned(),
        })
    }

    /// One call with one answer.
    pub(super) fn call<T, F>(&self, call: impl FnOnce(QuotaClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Answer<T>>,
    {
        let answered = self
            .runtime
            .block_on(call(QuotaClient::new(self.channel.clone())));
        answered
            .map(Response::into_inner)
            .map_err(|status| self.failed(status))
    }

    /// The next message of a stream; `None` at its end.
    pub(super) fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>> {
        self.runtime
            .block_on(stream.message())
            .map_err(|status| self.failed(status))
    }

    /// Waits, and gives way to a signal.
    pub(super) fn pause(&self, duration: std::time::Duration) {
        self.runtime.block_on(tokio::time::sleep(duration));
    }

    fn failed(&self, status: Status) -> Error {
        match status.code() {
            Code::Unavailable => Error::Unreachable {
                who: "the daemon",
                address: self.address.clone(),
                advice: "it was there a moment ago; see its log",
                source: status.into(),
            },
            Code::Unimplemented => Error::Answered(format!(
                "what serves {} is no snapshotter-quota, or an older one",
                self.address.display()
            )),
            _ => Error::Answered(status.message().to_owned()),
        }
    }
}

/// Whether the socket is there, for others.
fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    })
}

/// Longer than anybody listens.
const FOREVER: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 86_400);
