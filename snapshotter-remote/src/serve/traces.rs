//! Traces by HTTP: hosts put what they read first of a disk, and get what all agree on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use disk::Digest;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
};
use tokio::time::timeout;

use super::{
    answer::{Refusal, Served, refusal, text, value},
    body::Sent,
};
use crate::{
    error::{Error, Result},
    signature,
    store::Name,
    trace::{self, Trace},
};

/// How long a trace may take to come.
const LIMIT: Duration = Duration::from_secs(30);

/// It changes whenever a host has put one.
const CHANGING: &str = "private, no-cache";

impl Served {
    /// The answer to a request for the trace of a disk, or with one.
    pub(super) async fn decide_trace(
        self: &Arc<Self>,
        request: Request<Incoming>,
        chain_id: Digest,
        peer: SocketAddr,
    ) -> Result<Response<Sent>, Refusal> {
        let host = self.authorise(request.headers())?;
        match *request.method() {
            Method::PUT => {}
            Method::GET | Method::HEAD => return self.give_trace(&request, chain_id).await,
            _ => {
                let allowed = (header::ALLOW, HeaderValue::from_static("GET, HEAD, PUT"));
                return Err(Refusal {
                    field: Some(allowed),
                    ..refusal(
                        StatusCode::METHOD_NOT_ALLOWED,
                        "traces are read and written here, with GET, HEAD and PUT\n",
                    )
                });
            }
        }
        let bytes = timeout(LIMIT, read(request.into_body())).await;
        let late = |_elapsed| {
            refusal(
                StatusCode::REQUEST_TIMEOUT,
                "the trace did not come in time\n",
            )
        };
        let bytes = bytes.map_err(late)??;
        let trace = Trace::decode("trace", &bytes);
        let trace = trace.map_err(|error| {
            tracing::warn!(%peer, %chain_id, %error, "a trace is refused");
            refusal(
                StatusCode::BAD_REQUEST,
                "that is no trace of this version\n",
            )
        })?;
        // Without names, hosts are told apart by their addresses.
        let host = host.unwrap_or_else(|| peer.ip().to_string());
        let this = Arc::clone(self);
        // One place to read is enough for all: votes are changed one after the other.
        let turn = Arc::clone(&self.trace_turn).acquire_owned().await;
        let put = self
            .blocking(move || {
                let put = this.put_trace(chain_id, &host, trace);
                drop(turn);
                put
            })
            .await?;
        match put {
            Ok(refused) => refused.map(|()| {
                let mut response = Response::new(Sent::text(""));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }),
            Err(error) => {
                let why = snapshot_core::one_line(&error);
                tracing::warn!(%peer, %chain_id, why, "a trace cannot be kept");
                let text = "the store cannot keep traces\n";
                Err(refusal(StatusCode::INSUFFICIENT_STORAGE, text))
            }
        }
    }

    fn put_trace(&self, chain_id: Digest, host: &str, trace: Trace) -> Result<Result<(), Refusal>> {
        let no_disk = "the store has no such disk\n";
        let signed = match self.reader.get(Name::Disk(chain_id), signature::BYTES_MAX) {
            Err(Error::Absent { .. }) => {
                return Ok(Err(refusal(StatusCode::NOT_FOUND, no_disk)));
            }
            signed => signed?,
        };
        // It is the store's own: whoever signed it, this is how long its blobs are.
        let manifest = signature::open_unverified(&signed, chain_id)?;
        if !trace.is_of(&manifest) {
            let text = "the disk has not all that the trace touches\n";
            return Ok(Err(refusal(StatusCode::BAD_REQUEST, text)));
        }
        self.traces.put(chain_id, host, trace)?;
        Ok(Ok(()))
    }

    async fn give_trace(
        self: &Arc<Self>,
        request: &Request<Incoming>,
        chain_id: Digest,
    ) -> Result<Response<Sent>, Refusal> {
        let this = Arc::clone(self);
        let found = self.blocking(move || this.traces.get(chain_id)).await?;
        let found = found.map_err(|error| {
            let why = snapshot_core::one_line(&error);
            tracing::error!(%chain_id, why, "a trace cannot be read");
            refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the store has it and cannot read it\n",
            )
        })?;
        let Some(bytes) = found else {
            return Err(refusal(
                StatusCode::NOT_FOUND,
                "nobody has put a trace of that disk\n",
            ));
        };
        let tag = format!("\"{}\"", blake3::hash(&bytes).to_hex());
        let is_same =
            text(request.headers(), &header::IF_NONE_MATCH).is_some_and(|same| same == tag);
        let mut response = Response::new(Sent::text(""));
        let fields = response.headers_mut();
        fields.insert(header::ETAG, value(&tag));
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static(CHANGING));
        let kind = HeaderValue::from_static("application/octet-stream");
        fields.insert(header::CONTENT_TYPE, kind);
        if is_same {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(response);
        }
        fields.insert(header::CONTENT_LENGTH, bytes.len().into());
        if *request.method() == Method::GET {
            *response.body_mut() = Sent::text(bytes);
        }
        Ok(response)
    }
}

/// All of a request's contents, if they are not too long.
async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    match Limited::new(body, trace::BYTES_MAX).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal {
            field: Some((header::CONNECTION, HeaderValue::from_static("close"))),
            ..refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                "that is longer than a trace may be\n",
            )
        }),
        Err(_its_words) => Err(refusal(StatusCode::BAD_REQUEST, "the trace was cut off\n")),
    }
}
