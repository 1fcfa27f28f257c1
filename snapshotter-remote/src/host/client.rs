//! Objects of stores by HTTP/1.1. It returns bytes as they came: whoever asked verifies them.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use disk::Digest;
use hyper::{
    Request, StatusCode, Uri,
    body::{Body, Incoming},
    header::{self, HeaderValue},
    http::request,
};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{
    runtime::{Builder, Handle},
    sync::{oneshot, watch},
    time::timeout,
};

use super::{config::StoreConfig, metrics::Measured, tls::Connector};
use crate::{
    error::{Error, Result},
    store::Name,
    trace,
};

/// What a request carries.
type Full = http_body_util::Full<hyper::body::Bytes>;

/// Connections to a store that wait for the next request.
const IDLE_MAX: usize = 32;

/// A connection that waits longer is closed, before the server does it.
const IDLE: Duration = Duration::from_secs(20);

/// Between two rounds of asking all stores.
const PAUSE: Duration = Duration::from_millis(250);

/// What a store is given for an object, however little time is left.
const LIMIT_MIN: Duration = Duration::from_secs(1);

/// How long an object is tried for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Each store is asked once.
    Once,
    /// As long as `store.deadline_seconds`.
    Deadline,
    /// Until then, and once at least.
    Until(Instant),
}

/// Stores with the same objects. Its calls block.
pub struct Client {
    runtime: Handle,
    http: legacy::Client<Connector, Full>,
    /// Without an end of `/`.
    stores: Vec<String>,
    /// The one that answered last.
    first: AtomicUsize,
    token: Option<HeaderValue>,
    object_limit: Duration,
    deadline: Duration,
    measured: Measured,
    /// Says to all who wait that nothing more is fetched.
    closed: watch::Sender<bool>,
    /// Ends the thread when it is dropped.
    ending: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("stores", &self.stores)
            .finish_non_exhaustive()
    }
}

/// What a store said of an object.
enum Answer {
    Found(Vec<u8>),
    Absent,
}

impl Client {
    /// Of the stores in a configuration; none is asked yet.
    ///
    /// # Errors
    /// [`Error::Setting`] for an address that is none, and what keeps its thread from being started.
    pub fn new(config: &StoreConfig, measured: Measured) -> Result<Arc<Self>> {
        let stores = config
            .urls
            .iter()
            .map(|url| address(url, config.tls.is_on()));
        let stores = stores.collect::<Result<Vec<_>>>()?;
        let token = config.token()?.map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .expect("a token is of characters that can be seen");
            value.set_sensitive(true);
            value
        });
        let failed = |source| Error::File {
            doing: "starting the client of",
            path: config.urls.join(" ").into(),
            source,
        };
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let handle = runtime.handle().clone();
        let (ending, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("store-client".to_owned())
            // Either way it is over.
            .spawn(move || drop(runtime.block_on(ended)))
            .map_err(failed)?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect()));
        connector.set_nodelay(true);
        let connector = config.tls.connector(connector)?;
        let mut http = legacy::Client::builder(TokioExecutor::new());
        let http = http
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_timer(TokioTimer::new());
        Ok(Arc::new(Self {
            http: http.build(connector),
            runtime: handle,
            stores,
            first: AtomicUsize::new(0),
            token,
            object_limit: config.object(),
            deadline: config.deadline(),
            measured,
            closed: watch::Sender::new(false),
            ending: Some(ending),
            thread: Some(thread),
        }))
    }

    /// An object; none when all stores that answered say that they have none.
    ///
    /// # Errors
    /// [`Error::Unreachable`] says what the last store said.
    pub(super) fn get(
        &self,
        name: Name,
        bytes_max: usize,
        patience: Patience,
    ) -> Result<Option<Vec<u8>>> {
        self.get_named(&name.to_string(), bytes_max, patience)
    }

    /// What is read first of a disk, as a store that is asked once gives it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) fn trace(&self, disk: Digest) -> Result<Option<Vec<u8>>> {
        self.get_named(&trace_of(disk), trace::BYTES_MAX, Patience::Once)
    }

    /// Tells the store that answered last, or else another, what was read first of a disk.
    ///
    /// # Errors
    /// [`Error::Unreachable`] says what the last store said.
    pub(super) fn put_trace(&self, disk: Digest, bytes: &[u8]) -> Result<()> {
        let name = trace_of(disk);
        let mut failure = (0, String::new());
        let first = self.first.load(Ordering::Relaxed);
        for index in (0..self.stores.len()).map(|index| (first + index) % self.stores.len()) {
            let url = format!("{}/v1/{name}", self.stores[index]);
            let contents = Full::from(bytes.to_vec());
            match self.exchange(Request::put(url), contents, 1024, self.object_limit) {
                Ok(_) => return Ok(()),
                Err(what) => failure = (index, what),
            }
        }
        let (index, what) = failure;
        Err(Error::Unreachable {
            object: name,
            store: self.stores[index].clone(),
            what,
        })
    }

    fn get_named(
        &self,
        name: &str,
        bytes_max: usize,
        patience: Patience,
    ) -> Result<Option<Vec<u8>>> {
        let end = match patience {
            Patience::Once => Instant::now(),
            Patience::Deadline => Instant::now() + self.deadline,
            Patience::Until(end) => end,
        };
        loop {
            let mut is_absent = false;
            let mut failure = None;
            let first = self.first.load(Ordering::Relaxed);
            for index in (0..self.stores.len()).map(|index| (first + index) % self.stores.len()) {
                match self.ask(&self.stores[index], name, bytes_max, self.limit(patience)) {
                    Ok(Answer::Found(bytes)) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(Some(bytes));
                    }
                    Ok(Answer::Absent) => is_absent = true,
                    Err(what) => {
                        self.measured.store_failed();
                        failure = Some((index, what));
                    }
                }
            }
            let Some((index, what)) = failure.filter(|_| !is_absent) else {
                return Ok(None);
            };
            if Instant::now() + PAUSE >= end || *self.closed.borrow() {
                return Err(Error::Unreachable {
                    object: name.to_owned(),
                    store: self.stores[index].clone(),
                    what,
                });
            }
            tracing::debug!(object = %name, what, "asked for again");
            // On the client's thread; this one waits.
            self.runtime.block_on(async {
                let mut closed = self.closed.subscribe();
                // Either way it is time to go on.
                drop(timeout(PAUSE, closed.wait_for(|is| *is)).await);
            });
        }
    }

    /// How long a store may take for an object.
    fn limit(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Until(end) => {
                let left = end.saturating_duration_since(Instant::now());
                left.clamp(LIMIT_MIN, self.object_limit.max(LIMIT_MIN))
            }
            Patience::Once | Patience::Deadline => self.object_limit,
        }
    }

    /// Nothing is fetched any more: who waits is told that it failed.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Asks each store how it is: its address, and what is wrong with it.
    pub fn health(&self) -> Vec<(String, Result<(), String>)> {
        let ask = |store: &String| {
            let url = format!("{store}/v1/health");
            let answered = self.fetch(url, 1024, self.object_limit);
            let health = match answered {
                Ok(Answer::Found(_)) => Ok(()),
                Ok(Answer::Absent) => Err("it is no store: it has no /v1/health".to_owned()),
                Err(what) => Err(what),
            };
            (store.clone(), health)
        };
        self.stores.iter().map(ask).collect()
    }

    fn ask(
        &self,
        store: &str,
        name: &str,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<Answer, String> {
        self.fetch(format!("{store}/v1/{name}"), bytes_max, limit)
    }

    fn fetch(&self, url: String, bytes_max: usize, limit: Duration) -> Result<Answer, String> {
        let answer = self.exchange(Request::get(url), Full::default(), bytes_max, limit)?;
        if let Answer::Found(bytes) = &answer {
            self.measured.fetched(bytes.len());
        }
        Ok(answer)
    }

    fn exchange(
        &self,
        mut request: request::Builder,
        contents: Full,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<Answer, String> {
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(contents).map_err(said)?;
        let asked = self.http.request(request);
        let mut closed = self.closed.subscribe();
        let answered = async {
            let whole = async {
                let response = asked.await.map_err(said)?;
                match response.status() {
                    StatusCode::OK | StatusCode::NO_CONTENT => {
                        let bytes = read(response.into_body(), bytes_max).await?;
                        Ok(Answer::Found(bytes))
                    }
                    StatusCode::NOT_FOUND => Ok(Answer::Absent),
                    other => Err(format!("it answered {other}")),
                }
            };
            let seconds = limit.as_secs();
            let late = |_elapsed| format!("no answer within {seconds} seconds");
            tokio::select! {
                answered = timeout(limit, whole) => answered.map_err(late)?,
                _ = closed.wait_for(|is| *is) => Err("the daemon ends".to_owned()),
            }
        };
        self.runtime.block_on(answered)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.ending.take());
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            drop(thread.join());
        }
    }
}

/// Where a trace is.
fn trace_of(disk: Digest) -> String {
    format!("traces/{}/{disk}", trace::VERSION)
}

/// All of an answer, if it is not too long.
async fn read(mut body: Incoming, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame.map_err(said)?.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > bytes_max {
            return Err(format!("more than {bytes_max} bytes were sent"));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn said(error: impl std::error::Error) -> String {
    snapshot_core::one_line(&error)
}

/// The beginning of all addresses of a store.
fn address(url: &str, is_tls_on: bool) -> Result<String> {
    let refused = |why: &str| Error::Setting(format!("{url:?} is no address of a store: {why}"));
    let uri: Uri = url
        .parse()
        .map_err(|_its_words| refused("http://HOST:PORT is one"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if is_tls_on => {}
        Some("https") => {
            return Err(refused(
                "nobody is believed to be it: store.tls.ca_file names a file with the certificate of its authority",
            ));
        }
        _ => return Err(refused("http://HOST:PORT is one")),
    }
    if uri.query().is_some() || uri.host().is_none_or(str::is_empty) {
        return Err(refused("http://HOST:PORT is one"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_http_and_nothing_else() {
        let check = |url: &str, expected: Option<&str>| {
            assert_eq!(address(url, false).ok().as_deref(), expected, "{url}");
        };
        assert_eq!(address("https://store/", true).unwrap(), "https://store");
        check("http://store:7070", Some("http://store:7070"));
        check("http://[::1]:7070/", Some("http://[::1]:7070"));
        check("http://proxy/images", Some("http://proxy/images"));
        for refused in [
            "store:7070",
            "https://store",
            "http://store?x=1",
            "",
            "ftp://x",
            "/x",
        ] {
            check(refused, None);
        }
    }
}
