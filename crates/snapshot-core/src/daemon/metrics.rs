//! `GET /metrics` in Prometheus' text format, on a unix socket or a loopback address. It must not
//! be reachable from another host.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use prometheus_client::{encoding::prometheus_text, registry::Registry};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tonic::{
    body::Body,
    codegen::{Service, http},
    transport::Server,
};

use super::{
    Listener, Shutdown,
    incoming::{Bound, Incoming, REFUSE_HTTP1},
};
use crate::{Error, Limits, Result, Threads};

/// Who collects has one connection.
const CONNECTIONS_MAX: usize = 32;

/// Pages that are made at once: collectors may ask the kernel, and that may hang.
const PAGES_MAX: usize = 2;

/// Who collects does so more often.
const SILENCE: Duration = Duration::from_secs(600);

/// Prometheus waits 10 seconds.
const LIMITS: Limits = Limits {
    wait: Duration::from_secs(5),
    run: Duration::from_secs(30),
};

/// The table `[metrics]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where they are served; nowhere when it is missing.
    pub address: Option<MetricsAddress>,
}

/// Where metrics are served: `unix:/PATH` or a loopback address such as `127.0.0.1:9170`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum MetricsAddress {
    /// A socket with mode 0600.
    Unix(PathBuf),
    /// Everybody on this host can read them.
    Loopback(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address: SocketAddr = text.parse().map_err(|error| {
            format!("{text:?} is neither unix:/PATH nor an address with a port: {error}")
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{text:?} can be reached from other hosts; metrics name containers, so only \
                 127.0.0.0/8, [::1] and unix:/PATH are taken"
            ));
        }
        Ok(Self::Loopback(address))
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MetricsAddress> for String {
    fn from(address: MetricsAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => address.fmt(f),
        }
    }
}

/// The socket of the metrics, taken before anything else is done.
#[derive(Debug)]
pub enum MetricsListener {
    /// As [`MetricsAddress::Unix`].
    Unix(Listener),
    /// As [`MetricsAddress::Loopback`].
    Loopback(std::net::TcpListener),
}

impl MetricsListener {
    /// Takes it.
    ///
    /// # Errors
    /// When it is taken already, or cannot be.
    pub fn bind(address: &MetricsAddress) -> Result<Self> {
        match address {
            MetricsAddress::Unix(path) => Listener::bind(path).map(Self::Unix),
            MetricsAddress::Loopback(socket) => {
                let failed = || Error::io("listen for metrics on", socket.to_string());
                let listener = std::net::TcpListener::bind(socket).map_err(failed())?;
                listener.set_nonblocking(true).map_err(failed())?;
                Ok(Self::Loopback(listener))
            }
        }
    }

    /// Serves until the daemon ends.
    pub async fn serve(self, registry: Arc<Registry>, shutdown: Shutdown) {
        let page = Page {
            registry,
            threads: Threads::few(PAGES_MAX, LIMITS),
        };
        let ending = shutdown.wait();
        let server = Server::builder().accept_http1(true);
        let bound = Bound {
            connections_max: CONNECTIONS_MAX,
            refusal: REFUSE_HTTP1,
            silence: SILENCE,
        };
        let served = match &self {
            Self::Unix(listener) => match listener.share().and_then(UnixListener::from_std) {
                Ok(socket) => {
                    server
                        .serve_with_incoming_shutdown(page, Incoming::new(socket, bound), ending)
                        .await
                }
                Err(error) => return tracing::error!(%error, "metrics are not served"),
            },
            Self::Loopback(listener) => {
                match listener.try_clone().and_then(TcpListener::from_std) {
                    Ok(socket) => {
                        server
                            .serve_with_incoming_shutdown(
                                page,
                                Incoming::new(socket, bound),
                                ending,
                            )
                            .await
                    }
                    Err(error) => return tracing::error!(%error, "metrics are not served"),
                }
            }
        };
        if let Err(error) = served {
            tracing::error!(%error, "metrics are not served any more");
        }
    }
}

#[derive(Clone)]
struct Page {
    registry: Arc<Registry>,
    threads: Threads,
}

impl Service<http::Request<Body>> for Page {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let is_read = matches!(*request.method(), http::Method::GET | http::Method::HEAD);
            Ok(match (request.uri().path(), is_read) {
                ("/metrics", true) => page(this).await,
                ("/metrics", false) => plain(http::StatusCode::METHOD_NOT_ALLOWED, String::new()),
                _ => plain(http::StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
            })
        })
    }
}

async fn page(of: Page) -> http::Response<Body> {
    let encoded = of.threads.run(move || {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &of.registry).map(|()| text)
    });
    match encoded.await {
        Ok(Ok(text)) => {
            let mut response = plain(http::StatusCode::OK, text);
            response.headers_mut().insert(
                http::header::CONTENT_TYPE,
                http::HeaderValue::from_static(prometheus_text::CONTENT_TYPE),
            );
            response
        }
        Ok(Err(_)) => plain(
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "a metric could not be written\n".to_owned(),
        ),
        Err(error) => plain(http::StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn plain(status: http::StatusCode, text: String) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_host_are_addresses_of_metrics() {
        let check = |text: &str, expected: Option<&str>| {
            let parsed = text.parse::<MetricsAddress>();
            let shown = parsed.as_ref().ok().map(ToString::to_string);
            assert_eq!(shown.as_deref(), expected, "{parsed:?}");
        };
        check("unix:/run/x/m.sock", Some("unix:/run/x/m.sock"));
        check("127.0.0.1:9170", Some("127.0.0.1:9170"));
        check("127.8.0.1:1", Some("127.8.0.1:1"));
        check("[::1]:9170", Some("[::1]:9170"));
        check("0.0.0.0:9170", None);
        check("192.0.2.1:9170", None);
        check("[::]:9170", None);
        check("localhost", None);
        check("/run/x/m.sock", None);
    }
}
