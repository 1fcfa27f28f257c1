//! Several gRPC services on one socket: each request goes to its service when it is whole and has
//! a place, and is counted. It must not look into messages.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Bytes, Service, http},
    server::NamedService,
};
use tower::util::BoxCloneSyncService;

use super::{
    arrival::Arrival,
    incoming::{Call, Calls},
    request_metrics::{RequestMetrics, Running},
};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// The services of a daemon.
#[derive(Default)]
pub struct Services {
    named: BTreeMap<&'static str, Limited>,
}

#[derive(Clone)]
struct Limited {
    service: BoxCloneSyncService<Request, Response, Infallible>,
    arrival: Arrival,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.named.keys()).finish()
    }
}

impl Services {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a generated server. At most `requests_max` of its requests run at once, the others
    /// wait, with the limit of the daemon; so one service cannot take the places of another.
    #[must_use]
    pub fn with<S>(mut self, service: S, requests_max: usize) -> Self
    where
        S: Service<Request, Response = Response, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let limited = Limited {
            service: BoxCloneSyncService::new(service),
            arrival: Arrival::new(),
            places: Arc::new(Semaphore::new(requests_max)),
        };
        self.named.insert(S::NAME, limited);
        self
    }

    pub(super) fn into_router(self, metrics: RequestMetrics, wait: Duration) -> Router {
        Router {
            named: Arc::new(self.named),
            metrics,
            wait,
        }
    }
}

/// Finds the service of a request.
#[derive(Clone)]
pub(super) struct Router {
    named: Arc<BTreeMap<&'static str, Limited>>,
    metrics: RequestMetrics,
    /// How long a request waits for a place.
    wait: Duration,
}

impl Service<Request> for Router {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some((limited, method)) = self.find(request.uri().path()) else {
            let path = request.uri().path().to_owned();
            return Box::pin(async move {
                Ok(Status::unimplemented(format!("{path:?} is not served here")).into_http())
            });
        };
        let (metrics, wait) = (self.metrics.clone(), self.wait);
        Box::pin(async move {
            let running = metrics.begin();
            let call = request.extensions().get::<Calls>().map(Calls::begin);
            let begun = Instant::now();
            let response = answer(limited, request, wait).await?;
            let code = code_of(&response);
            metrics.end(&method, code, begun.elapsed());
            tracing::debug!(method, ?code, elapsed = ?begun.elapsed(), "answered");
            Ok(response.map(|body| {
                Body::new(Answer {
                    body,
                    _running: running,
                    _call: call,
                })
            }))
        })
    }
}

impl Router {
    /// `/package.Service/Method`.
    fn find(&self, path: &str) -> Option<(Limited, String)> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let limited = self.named.get(service)?;
        Some((limited.clone(), method.to_owned()))
    }
}

/// The body of an answer: the request runs until its end, which for a stream is long after its
/// beginning.
struct Answer {
    body: Body,
    _running: Running,
    _call: Option<Call>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

async fn answer(
    mut limited: Limited,
    request: Request,
    wait: Duration,
) -> Result<Response, Infallible> {
    let arrived = match limited.arrival.whole(request).await {
        Ok(arrived) => arrived,
        Err(status) => return Ok(status.into_http()),
    };
    // Nobody closes the semaphore.
    let Ok(Ok(_place)) = timeout(wait, limited.places.acquire()).await else {
        let text = format!(
            "as many requests run as may, and none of them ended within {} seconds; try again \
             later, or raise server.requests_max",
            wait.as_secs_f32()
        );
        return Ok(Status::unavailable(text).into_http());
    };
    std::future::poll_fn(|context| limited.service.poll_ready(context)).await?;
    limited.service.call(arrived.into_request()).await
}

/// An error stands in the header; what a stream meets later is not seen here.
fn code_of(response: &Response) -> Code {
    response
        .headers()
        .get(Status::GRPC_STATUS)
        .map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}
