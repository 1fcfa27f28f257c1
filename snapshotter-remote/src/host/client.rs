//! Objects of stores by HTTP/1.1. It returns bytes as they came: whoever asked verifies them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use disk::Digest;
use hyper::{
    Request, StatusCode, Uri,
    header::{self, HeaderValue},
    http::request,
};
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connect, HttpConnector},
    },
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{
    runtime::{Builder, Handle},
    sync::{oneshot, watch},
    time::timeout,
};

use super::{
    config::StoreConfig,
    conversion::Wanted,
    metrics::Measured,
    proxy::ToProxy,
    received::{Broken, Received},
    tls::Connector,
};
use crate::{
    conversion::{IMAGE, PREFER, prefer},
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

/// A proxy that has failed is left alone for so long.
const PROXY_AWAY: Duration = Duration::from_secs(10);

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

/// By which way an object is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By the proxy, if there is one and it works, else directly.
    Usual,
    /// Not by the proxy.
    Direct,
}

/// A proxy between this host and its stores.
#[derive(Debug)]
struct Proxy {
    http: legacy::Client<ToProxy, Full>,
    away_until: Mutex<Option<Instant>>,
}

impl Proxy {
    fn works(&self) -> bool {
        let until = self
            .away_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| Instant::now() >= until)
    }

    fn failed(&self) {
        let until = Instant::now() + PROXY_AWAY;
        *self
            .away_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

/// Stores with the same objects. Its calls block.
pub struct Client {
    runtime: Handle,
    http: legacy::Client<Connector, Full>,
    proxy: Option<Proxy>,
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
    /// It is being made.
    Later,
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
        let mut http = legacy::Client::builder(TokioExecutor::new());
        let http = http
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_timer(TokioTimer::new());
        let proxy = config.proxy.as_deref().map(|url| proxy_for(&stores, url));
        let proxy = proxy.transpose()?;
        let proxy = proxy.map(|proxy| Proxy {
            http: http.build(ToProxy {
                proxy: proxy.parse().expect("it was read as an address"),
                http: connector.clone(),
            }),
            away_until: Mutex::default(),
        });
        Ok(Arc::new(Self {
            http: http.build(config.tls.connector(connector)?),
            proxy,
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
        (patience, way): (Patience, Way),
    ) -> Result<Option<Vec<u8>>> {
        self.get_named(&name.to_string(), bytes_max, (patience, way))
    }

    /// Whether there is a proxy between this host and its stores.
    pub(super) fn has_proxy(&self) -> bool {
        self.proxy.is_some()
    }

    /// What is read first of a disk, as a store that is asked once gives it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) fn trace(&self, disk: Digest) -> Result<Option<Vec<u8>>> {
        self.get_named(
            &trace_of(disk),
            trace::BYTES_MAX,
            (Patience::Once, Way::Direct),
        )
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
            let limit = self.object_limit;
            match self.exchange(&self.http, Request::put(url), contents, (1024, limit)) {
                Ok(Answer::Found(_)) => return Ok(()),
                Ok(Answer::Absent | Answer::Later) => {
                    failure = (index, "it has no such disk".to_owned());
                }
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
        (patience, way): (Patience, Way),
    ) -> Result<Option<Vec<u8>>> {
        self.get_wanted(name, None, bytes_max, (patience, way))
    }

    /// The same of a manifest, which stores that do not have it may make of that image.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) fn get_wanted(
        &self,
        name: &str,
        wanted: Option<&Wanted>,
        bytes_max: usize,
        (patience, way): (Patience, Way),
    ) -> Result<Option<Vec<u8>>> {
        let made_until = wanted.map(|wanted| Instant::now() + wanted.wait);
        let end = match patience {
            Patience::Once => Instant::now(),
            Patience::Deadline => Instant::now() + self.deadline,
            Patience::Until(end) => end,
        };
        loop {
            let left = wanted.zip(made_until).map(|(wanted, until)| Wanted {
                image: wanted.image.clone(),
                wait: until.saturating_duration_since(Instant::now()),
            });
            let (mut is_absent, mut is_later) = (false, false);
            let mut failure = None;
            let first = self.first.load(Ordering::Relaxed);
            for index in (0..self.stores.len()).map(|index| (first + index) % self.stores.len()) {
                let most = (bytes_max, self.limit(patience));
                match self.ask((&self.stores[index], name), left.as_ref(), most, way) {
                    Ok(Answer::Found(bytes)) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(Some(bytes));
                    }
                    Ok(Answer::Absent) => is_absent = true,
                    Ok(Answer::Later) => is_later = true,
                    Err(what) => {
                        self.measured.store_failed();
                        failure = Some((index, what));
                    }
                }
            }
            let is_over = *self.closed.borrow();
            if is_later
                && !is_over
                && made_until.is_some_and(|until| Instant::now() + PAUSE < until)
            {
                tracing::debug!(object = %name, "waited for while it is made");
                self.pause();
                continue;
            }
            let Some((index, what)) = failure.filter(|_| !is_absent && !is_later) else {
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
            self.pause();
        }
    }

    /// Waits a moment, or until nothing is fetched any more.
    fn pause(&self) {
        // On the client's thread; this one waits.
        self.runtime.block_on(async {
            let mut closed = self.closed.subscribe();
            // Either way it is time to go on.
            drop(timeout(PAUSE, closed.wait_for(|is| *is)).await);
        });
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
            let answered = self.fetch(url, None, (1024, self.object_limit));
            let health = match answered {
                Ok(Answer::Found(_)) => Ok(()),
                Ok(Answer::Absent | Answer::Later) => {
                    Err("it is no store: it has no /v1/health".to_owned())
                }
                Err(what) => Err(what),
            };
            (store.clone(), health)
        };
        self.stores.iter().map(ask).collect()
    }

    fn ask(
        &self,
        (store, name): (&str, &str),
        wanted: Option<&Wanted>,
        (bytes_max, limit): (usize, Duration),
        way: Way,
    ) -> Result<Answer, String> {
        let url = format!("{store}/v1/{name}");
        // Who makes something for this host is asked by it.
        let is_usual = way == Way::Usual && wanted.is_none();
        let proxy = self.proxy.as_ref().filter(|_| is_usual);
        if let Some(proxy) = proxy.filter(|proxy| proxy.works()) {
            let most = (bytes_max, (limit / 2).max(LIMIT_MIN));
            match self.exchange(&proxy.http, Request::get(&url), Full::default(), most) {
                Ok(Answer::Found(bytes)) => {
                    self.measured.fetched(bytes.len());
                    return Ok(Answer::Found(bytes));
                }
                // It may be the proxy that has it not.
                Ok(Answer::Absent | Answer::Later) => {}
                Err(what) => {
                    self.measured.proxy_failed();
                    tracing::warn!(
                        object = name,
                        what,
                        "the proxy fails: stores are asked directly"
                    );
                    proxy.failed();
                }
            }
        }
        self.fetch(url, wanted, (bytes_max, limit))
    }

    fn fetch(
        &self,
        url: String,
        wanted: Option<&Wanted>,
        most: (usize, Duration),
    ) -> Result<Answer, String> {
        let mut request = Request::get(url);
        if let Some(wanted) = wanted {
            request = request
                .header(IMAGE, &wanted.image)
                .header(PREFER, prefer(wanted.patience(most.1)));
        }
        let answer = self.exchange(&self.http, request, Full::default(), most)?;
        if let Answer::Found(bytes) = &answer {
            self.measured.fetched(bytes.len());
        }
        Ok(answer)
    }

    fn exchange<C: Connect + Clone + Send + Sync + 'static>(
        &self,
        http: &legacy::Client<C, Full>,
        mut request: request::Builder,
        contents: Full,
        (bytes_max, limit): (usize, Duration),
    ) -> Result<Answer, String> {
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(contents).map_err(said)?;
        let mut closed = self.closed.subscribe();
        let answered = async {
            let whole = self.whole(http, request, bytes_max);
            let seconds = limit.as_secs();
            let late = |_elapsed| format!("no answer within {seconds} seconds");
            tokio::select! {
                answered = timeout(limit, whole) => answered.map_err(late)?,
                _ = closed.wait_for(|is| *is) => Err("the daemon ends".to_owned()),
            }
        };
        self.runtime.block_on(answered)
    }

    /// All of an answer; where it breaks, the rest is asked for.
    async fn whole<C: Connect + Clone + Send + Sync + 'static>(
        &self,
        http: &legacy::Client<C, Full>,
        request: Request<Full>,
        bytes_max: usize,
    ) -> Result<Answer, String> {
        let mut received = Received::default();
        loop {
            let response = http.request(received.rest(&request)).await;
            let response = response.map_err(said)?;
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT => {}
                StatusCode::NOT_FOUND => return Ok(Answer::Absent),
                StatusCode::ACCEPTED => return Ok(Answer::Later),
                StatusCode::RANGE_NOT_SATISFIABLE if received.is_all(response.headers()) => {
                    return Ok(Answer::Found(received.into_bytes()));
                }
                other => return Err(format!("it answered {other}")),
            }
            if !received.begins(status, response.headers()) {
                return Err(format!("it answered {status}, and not what was asked for"));
            }
            match received.read(response.into_body(), bytes_max).await {
                Ok(()) => return Ok(Answer::Found(received.into_bytes())),
                Err(Broken::Over(what)) => return Err(what),
                Err(Broken::Resumable(what)) => {
                    self.measured.resumed();
                    let path = request.uri().path();
                    tracing::debug!(path, what, "the rest of an answer is asked for");
                }
            }
        }
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

fn said(error: impl std::error::Error) -> String {
    snapshot_core::one_line(&error)
}

/// The address of a proxy between this host and such stores.
fn proxy_for(stores: &[String], url: &str) -> Result<String> {
    if let Some(store) = stores.iter().find(|store| store.starts_with("https:")) {
        return Err(Error::Setting(format!(
            "store.proxy = {url:?} cannot stand before {store}: a proxy reads what it keeps, and TLS is from end to \
             end; leave out one of the two"
        )));
    }
    address(url, false)
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
pub(super) mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::{SocketAddr, TcpListener},
    };

    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    /// Answers so many requests, each on a connection of its own: their first lines.
    pub(in crate::host) fn serve(
        answers: &[(&'static str, &'static str)],
    ) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = answers.to_vec();
        let served = std::thread::spawn(move || {
            let answer = |(status, contents): (&str, &str)| {
                let (mut client, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while !lines.next().unwrap().unwrap().is_empty() {}
                let length = contents.len();
                write!(
                    client,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{contents}"
                )
                .unwrap();
                first
            };
            answers.into_iter().map(answer).collect()
        });
        (address, served)
    }

    #[test]
    fn a_proxy_is_asked_for_what_stores_have_and_goes_without_when_it_fails() {
        let (proxy, by_proxy) =
            serve(&[("200 OK", "cached"), ("404 Not Found", ""), ("502 Bad", "")]);
        let (store, by_store) = serve(&[
            ("200 OK", "one"),
            ("200 OK", "two"),
            ("200 OK", "three"),
            ("200 OK", "four"),
        ]);
        let config = StoreConfig {
            urls: vec![format!("http://{store}")],
            proxy: Some(format!("http://{proxy}")),
            ..StoreConfig::default()
        };
        let client = Client::new(&config, Measured::default()).unwrap();
        let name = Name::Table([0xab; 32]);
        let get = |way| {
            let bytes = client
                .get(name, 100, (Patience::Once, way))
                .unwrap()
                .unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(get(Way::Usual), "cached");
        assert_eq!(
            get(Way::Direct),
            "one",
            "what is damaged is not asked of it again"
        );
        assert_eq!(get(Way::Usual), "two", "it has none");
        assert_eq!(get(Way::Usual), "three", "it fails");
        assert_eq!(get(Way::Usual), "four", "it is left alone for a while");
        let full = format!("GET http://{store}/v1/{name} HTTP/1.1");
        assert_eq!(by_proxy.join().unwrap(), vec![full; 3]);
        let short = format!("GET /v1/{name} HTTP/1.1");
        assert_eq!(by_store.join().unwrap(), vec![short; 4]);
    }

    /// Sends these answers as they are, each on a connection of its own that it then closes: the heads of the requests.
    fn say(answers: Vec<String>) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = std::thread::spawn(move || {
            let answer = |text: String| {
                let (mut client, _) = listener.accept().unwrap();
                let lines = BufReader::new(client.try_clone().unwrap()).lines();
                let head = lines
                    .map(Result::unwrap)
                    .take_while(|line| !line.is_empty());
                let head = head.collect::<Vec<_>>().join("\n").to_lowercase();
                client.write_all(text.as_bytes()).unwrap();
                head
            };
            answers.into_iter().map(answer).collect()
        });
        (address, served)
    }

    fn asks(address: SocketAddr) -> Result<Option<Vec<u8>>> {
        asks_and_counts(address, &Measured::default())
    }

    fn asks_and_counts(address: SocketAddr, measured: &Measured) -> Result<Option<Vec<u8>>> {
        let config = StoreConfig {
            urls: vec![format!("http://{address}")],
            ..StoreConfig::default()
        };
        let client = Client::new(&config, measured.clone()).unwrap();
        let patience = (Patience::Once, Way::Usual);
        client.get(Name::Table([0xab; 32]), 10, patience)
    }

    /// How many answers were gone on with, as an operator is told.
    fn resumed(measured: &Measured) -> String {
        let mut registry = Registry::default();
        measured.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("transfers_resumed_total "));
        count.unwrap().to_owned()
    }

    /// An answer that says that it has so many bytes.
    fn head(status: &str, bytes: usize, fields: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {bytes}\r\n{fields}\r\n")
    }

    /// An answer of unknown length that breaks behind these bytes.
    fn unended(text: &str) -> String {
        let length = text.len();
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{TAG}\r\n{length:x}\r\n{text}\r\n"
        )
    }

    const TAG: &str = "ETag: \"x\"\r\n";

    #[test]
    fn an_answer_that_breaks_goes_on_where_it_broke() {
        let range = |from| format!("Content-Range: bytes {from}-9/10\r\n{TAG}");
        let part =
            |from: usize, text: &str| head("206 Partial Content", 10 - from, &range(from)) + text;
        let (store, served) = say(vec![
            head("200 OK", 10, TAG) + "0123",
            part(4, "45"),
            part(6, "6789"),
        ]);
        let measured = Measured::default();
        let whole = asks_and_counts(store, &measured).unwrap().unwrap();
        assert_eq!(whole, b"0123456789");
        assert_eq!(resumed(&measured), "2");
        let asked = served.join().unwrap();
        assert!(!asked[0].contains("range: "), "{asked:?}");
        for (head, from) in [(&asked[1], 4), (&asked[2], 6)] {
            let range = format!("\nrange: bytes={from}-");
            assert!(
                head.contains(&range) && head.contains("\nif-range: \"x\""),
                "{head}"
            );
        }

        // It has become another meanwhile.
        let other = head("200 OK", 5, "ETag: \"y\"\r\n") + "other";
        let (store, served) = say(vec![head("200 OK", 10, TAG) + "0123", other]);
        assert_eq!(asks(store).unwrap().unwrap(), b"other");
        served.join().unwrap();

        // All of it had come, and only its end had not.
        let end = head(
            "416 Range Not Satisfiable",
            0,
            "Content-Range: bytes */10\r\n",
        );
        let (store, served) = say(vec![unended("0123456789"), end]);
        assert_eq!(asks(store).unwrap().unwrap(), b"0123456789");
        served.join().unwrap();
    }

    #[test]
    fn an_answer_that_cannot_go_on_fails() {
        let fails = |answers: Vec<String>, expected: &str| {
            let (store, served) = say(answers);
            let error = asks(store).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            served.join().unwrap();
        };
        let broken = "error reading a body";
        // What it is of is not said, or not for sure.
        fails(vec![head("200 OK", 10, "") + "0123"], broken);
        let weak = "ETag: W/\"x\"\r\n";
        fails(vec![head("200 OK", 10, weak) + "0123"], broken);
        // Nothing has come.
        fails(vec![head("200 OK", 10, TAG)], broken);
        let begun = || head("200 OK", 10, TAG) + "0";
        let from = |at| format!("Content-Range: bytes {at}-9/10\r\n{TAG}");
        let others = head("206 Partial Content", 8, &from(2)) + "23456789";
        fails(vec![begun(), others], "not what was asked for");
        for (range, tag) in [
            ("1-9/10", "ETag: \"y\"\r\n"),
            ("1-9/10", weak),
            ("1-8/10", TAG),
            ("1-9/*", TAG),
            ("1-9", TAG),
        ] {
            let fields = format!("Content-Range: bytes {range}\r\n{tag}");
            let other = head("206 Partial Content", 9, &fields) + "123456789";
            fails(vec![begun(), other], "not what was asked for");
        }
        for range in ["bytes */11", "bytes */0"] {
            let fields = format!("Content-Range: {range}\r\n");
            let no_end = head("416 Range Not Satisfiable", 0, &fields);
            fails(vec![unended("0123456789"), no_end], "it answered 416");
        }
        // More than was asked for by anybody.
        fails(
            vec![head("206 Partial Content", 8, &from(2))],
            "not what was asked for",
        );
        let long = head("206 Partial Content", 12, &from(1)) + "123456789abc";
        fails(vec![begun(), long], "more than 10 bytes were sent");
        // Again and again.
        let again = (1..=5).map(|at| head("206 Partial Content", 10 - at, &from(at)) + "x");
        fails([begun()].into_iter().chain(again).collect(), broken);
    }

    #[test]
    fn a_proxy_stands_before_no_store_with_tls() {
        let stores = |url: &str| [url.to_owned()];
        let proxy = proxy_for(&stores("http://store:1"), "http://cache:2/");
        assert_eq!(proxy.unwrap(), "http://cache:2");
        let error = proxy_for(&stores("https://store:1"), "http://cache:2").unwrap_err();
        assert!(error.to_string().contains("https://store:1"), "{error}");
        assert!(proxy_for(&stores("http://store:1"), "https://cache:2").is_err());
    }

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
