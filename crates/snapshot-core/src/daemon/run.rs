//! From the socket to the end. What runs in between is the caller's.

use std::{
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::stat::{Mode, umask};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use tonic::transport::Server;

use super::{
    Listener, MetricsAddress, Services, Shutdown,
    activation::passed_socket,
    config,
    incoming::{Bound, Incoming, REFUSE_HTTP2},
    metrics::MetricsListener,
    notify,
    request_metrics::RequestMetrics,
    shutdown::Trigger,
};
use crate::{Error, Limits, Result, Threads, threads::SLOW_MAX};

/// The table `[server]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Connections at once; others are refused, and told to come later.
    pub connections_max: usize,
    /// How long a connection may be open, in seconds: it is closed when its requests have ended, and
    /// the client makes another. One that is silent for twice as long is closed without a word.
    pub connection_seconds: u64,
    /// Requests of one service that run at once; others wait.
    pub requests_max: usize,
    /// Threads for calls that block, made when needed and gone when idle. Beside them are those of
    /// Cleanup, of operators, of the watch and of calls that hang.
    pub threads_max: usize,
    /// How long a request waits for its turn, in seconds.
    pub wait_seconds: u64,
    /// How long a request may take from its turn on, in seconds; the client is told, and it goes on.
    pub request_seconds: u64,
    /// How long requests may take to end after SIGTERM, in seconds.
    pub drain_seconds: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            connections_max: 256,
            connection_seconds: 600,
            requests_max: 1024,
            threads_max: 32,
            wait_seconds: 60,
            request_seconds: 600,
            drain_seconds: 30,
        }
    }
}

impl ServerConfig {
    /// Refuses what no daemon could run with.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the key.
    pub fn check(&self) -> Result<()> {
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("server.{key}"), value, bounds);
        bounded("connections_max", self.connections_max as u64, 1..=65_536)?;
        bounded("connection_seconds", self.connection_seconds, 1..=86_400)?;
        bounded("requests_max", self.requests_max as u64, 1..=65_536)?;
        bounded("threads_max", self.threads_max as u64, 1..=512)?;
        bounded("wait_seconds", self.wait_seconds, 1..=3600)?;
        bounded("request_seconds", self.request_seconds, 1..=86_400)?;
        bounded("drain_seconds", self.drain_seconds, 0..=3600)
    }

    /// How long requests wait.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            wait: Duration::from_secs(self.wait_seconds),
            run: Duration::from_secs(self.request_seconds),
        }
    }

    /// Threads for the requests of one service.
    #[must_use]
    pub fn threads(&self) -> Threads {
        Threads::new(self.threads_max, self.limits())
    }
}

/// What a daemon is made of, before it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Path of its socket, unless the service manager passes one.
    pub address: PathBuf,
    /// Where its metrics are.
    pub metrics: Option<MetricsAddress>,
    /// Its bounds.
    pub server: ServerConfig,
}

/// Reads the configuration again, as far as that is possible while it runs. What it returns is
/// logged; the old configuration stays in force then.
pub type Reload = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// Puts right what must not stay as it is without a daemon.
pub type Finish = Box<dyn FnOnce() + Send>;

/// What it serves.
pub struct Served {
    /// The gRPC services.
    pub services: Services,
    /// The metrics of those services; the requests are added here.
    pub registry: Registry,
    /// What SIGHUP does.
    pub reload: Reload,
    /// What is done last, when no request runs any more. It may block.
    pub finish: Finish,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served")
            .field("services", &self.services)
            .finish_non_exhaustive()
    }
}

/// A daemon that has its sockets.
#[derive(Debug)]
pub struct Daemon {
    listener: Listener,
    metrics: Option<MetricsListener>,
    server: ServerConfig,
}

/// Idle threads go after this; the next request makes one in some 20 µs.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Threads beside those of requests, made when needed: for calls that hang, of containerd's and of
/// operators' requests, and for all that is no request of containerd's.
const OTHER_THREADS_MAX: usize = 2 * SLOW_MAX + 64;

/// Calls that block and whose client is gone may take this long at the end, at least.
const LAST_CALLS_MIN: Duration = Duration::from_secs(1);

/// How long connections without a request may stay open at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Streams of one connection; containerd has one connection for all its requests.
const STREAMS_MAX: u32 = 16_384;

impl Daemon {
    /// Takes the socket that the service manager passed, or makes it, and sets the umask to 022.
    ///
    /// # Errors
    /// [`Error::Precondition`] when a living process serves the address; [`Error::Invalid`] when
    /// the service manager passed another socket than the one there.
    pub fn claim(settings: &Settings) -> Result<Self> {
        settings.server.check()?;
        umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let listener = match passed_socket()? {
            Some(passed) => {
                passed.expect_at(&settings.address)?;
                passed
            }
            None => Listener::bind(&settings.address)?,
        };
        let metrics = settings.metrics.as_ref().map(MetricsListener::bind);
        Ok(Self {
            listener,
            metrics: metrics.transpose()?,
            server: settings.server,
        })
    }

    /// Where clients find it.
    #[must_use]
    pub fn address(&self) -> Option<PathBuf> {
        self.listener.path()
    }

    /// Runs until a signal ends it. `build` may block and may spawn tasks; clients that connect
    /// meanwhile wait.
    ///
    /// # Errors
    /// What `build` returns; what keeps the daemon from serving.
    pub fn run<E: From<Error>>(
        self,
        build: impl FnOnce(&Shutdown) -> Result<Served, E>,
    ) -> Result<(), E> {
        let runtime = runtime(&self.server)?;
        let (trigger, shutdown) = Shutdown::channel();
        let served = {
            let _inside = runtime.enter();
            build(&shutdown)?
        };
        let address = self.listener.path();
        let begun = Begun {
            server: self.server,
            status: format!(
                "serving on {}",
                address
                    .as_deref()
                    .unwrap_or(Path::new("a passed socket"))
                    .display()
            ),
            trigger,
            shutdown,
        };
        let ended = runtime.block_on(begun.serve(self.listener, self.metrics, served));
        // Without the limit, dropping the runtime would wait for every blocking call.
        runtime.shutdown_timeout(match &ended {
            Ok(left) => (*left).max(LAST_CALLS_MIN),
            Err(_) => LAST_CALLS_MIN,
        });
        tracing::info!("ended");
        Ok(ended.map(drop)?)
    }
}

fn runtime(server: &ServerConfig) -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(server.threads_max + OTHER_THREADS_MAX)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()
        .map_err(Error::io("start the event loop of", "/proc/self/exe"))
}

/// A daemon whose services are there.
struct Begun {
    server: ServerConfig,
    status: String,
    trigger: Trigger,
    shutdown: Shutdown,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

enum Asked {
    End,
    Reload,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(Error::io("listen for the signals of", "/proc/self"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}

impl Begun {
    /// Returns what is left of the time to end.
    async fn serve(
        self,
        listener: Listener,
        metrics: Option<MetricsListener>,
        served: Served,
    ) -> Result<Duration> {
        let mut signals = Signals::new()?;
        let Served {
            services,
            mut registry,
            reload,
            finish,
        } = served;
        let requests = RequestMetrics::register(&mut registry);
        let socket = listener
            .share()
            .and_then(UnixListener::from_std)
            .map_err(Error::io("serve the socket", &self.status))?;
        let age = Duration::from_secs(self.server.connection_seconds);
        let connections = Bound {
            connections_max: self.server.connections_max,
            refusal: REFUSE_HTTP2,
            silence: 2 * age,
        };
        let mut serving = pin!(
            Server::builder()
                .max_concurrent_streams(STREAMS_MAX)
                .max_connection_age(age)
                .serve_with_incoming_shutdown(
                    services.into_router(requests.clone(), self.server.limits().wait),
                    Incoming::new(socket, connections),
                    self.shutdown.clone().wait(),
                )
        );
        if let Some(metrics) = metrics {
            tokio::spawn(metrics.serve(Arc::new(registry), self.shutdown.clone()));
        }
        tokio::spawn(notify::keep_alive(self.shutdown.clone()));
        notify::ready(&self.status);
        tracing::info!(status = self.status, "ready");

        let mut reloads = Reloads::new(reload, &self.status);
        loop {
            tokio::select! {
                // Without a signal it ends by an error only.
                ended = &mut serving => {
                    return Err(Error::Unavailable(format!(
                        "the server ended by itself: {ended:?}"
                    )));
                }
                asked = signals.next() => match asked {
                    Asked::End => break,
                    Asked::Reload => reloads.ask(),
                },
                () = reloads.step() => {}
            }
        }
        // New clients get ECONNREFUSED or ENOENT at once and may try again later.
        drop(listener);
        let ending = Ending {
            requests,
            finish,
            limit: Duration::from_secs(self.server.drain_seconds),
        };
        self.trigger.pull();
        Ok(ending.run(serving, signals).await)
    }
}

/// The configuration is read beside the loop, as a reload waits for requests that change what it
/// changes, and those may last. One runs at a time; whoever asks meanwhile has another follow.
///
/// ```text
///  idle --ask--> running --ask--> running, asked again
///   ^--------- done --'  ^----------- done --'
/// ```
struct Reloads<'a> {
    reload: Arc<Reload>,
    status: &'a str,
    running: Option<oneshot::Receiver<Result<()>>>,
    asked_again: bool,
}

impl<'a> Reloads<'a> {
    fn new(reload: Reload, status: &'a str) -> Self {
        Self {
            reload: Arc::new(reload),
            status,
            running: None,
            asked_again: false,
        }
    }

    fn ask(&mut self) {
        if self.running.is_some() {
            tracing::info!("the configuration is read once more after this");
            self.asked_again = true;
            return;
        }
        notify::reloading();
        let reload = Arc::clone(&self.reload);
        self.running = Some(apart("reload", move || reload()));
    }

    /// Waits for the end of what runs; for ever when nothing does.
    async fn step(&mut self) {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        match running.await {
            Ok(Ok(())) => tracing::info!("the configuration was read again"),
            Ok(Err(error)) => {
                tracing::error!(%error, "the configuration stays as it was");
            }
            Err(error) => tracing::error!(%error, "the configuration stays as it was"),
        }
        self.running = None;
        notify::ready(self.status);
        if std::mem::take(&mut self.asked_again) {
            self.ask();
        }
    }
}

/// Runs what waits for requests on a thread that none of them can have: they wait for theirs with
/// names in their hands. Nothing comes back when it could not run, which is logged.
fn apart<T: Send + 'static>(
    name: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> oneshot::Receiver<T> {
    let (teller, told) = oneshot::channel();
    let run = move || {
        // Who does not wait any more does not want to know.
        let _left = teller.send(call());
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        tracing::error!(%error, name, "no thread could be made");
    }
    told
}

/// From the signal to the last call.
struct Ending {
    requests: RequestMetrics,
    finish: Finish,
    limit: Duration,
}

impl Ending {
    /// Gives what is left of the time.
    async fn run(self, mut serving: Pin<&mut impl Future>, mut signals: Signals) -> Duration {
        let deadline = Instant::now() + self.limit;
        let running = self.requests.running();
        notify::stopping(&format!("finishing {running} requests"));
        tracing::info!(running, "finishing");
        let requests = &self.requests;
        let done = async {
            requests.none_running().await;
            // Clients that follow the protocol close their connections now; one that hangs must
            // not hold the daemon.
            tokio::time::timeout(FAREWELL, &mut serving).await
        };
        tokio::select! {
            _either = done => {}
            () = tokio::time::sleep(self.limit) => {
                tracing::warn!(running = requests.running(), "requests did not end in time");
            }
            () = until_end_is_asked(&mut signals) => {
                tracing::warn!(running = requests.running(), "ended by a second signal");
                return Duration::ZERO;
            }
        }
        let last = apart("finish", self.finish);
        let limit = deadline
            .saturating_duration_since(Instant::now())
            .max(LAST_CALLS_MIN);
        match tokio::time::timeout(limit, last).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "not everything was put right"),
            Err(_) => tracing::warn!("what was to be put right did not end in time"),
        }
        deadline.saturating_duration_since(Instant::now())
    }
}

async fn until_end_is_asked(signals: &mut Signals) {
    while !matches!(signals.next().await, Asked::End) {}
}
