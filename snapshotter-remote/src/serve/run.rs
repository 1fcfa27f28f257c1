//! The server's process: what it takes before it serves, its connections, signals, and an end that
//! finishes what is begun.

use std::{
    net::{SocketAddr, TcpListener as Listener},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use prometheus_client::registry::Registry;
use snapshot_core::daemon::{Logging, MetricsListener, Shutdown, notify};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};

use super::{
    answer::Served,
    config::{Config, Limits},
    connection,
    convert::Conversions,
    measured::Measured,
    nbd::{self, Exports},
    tokens::Tokens,
};
use crate::{
    error::{Error, Result},
    open_files,
    store::{self, Reader},
};

/// Connections that wait in the kernel until they are accepted, as far as it keeps so many.
const BACKLOG: u32 = 4096;

/// Bytes that the kernel keeps of an answer, and as many for its own use. Left to itself it keeps megabytes
/// and takes more when a third of them is free, which of a client that is slow, but steady, looks like a
/// long silence.
const SEND_BUFFER_BYTES: u32 = 128 << 10;

/// A host that is silent is asked after this whether it is there, then again and again, so often: after two minutes it is gone. The
/// kernel's own times are two hours and more.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_PROBE_SECONDS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 6;

/// Threads for what is no object: the page of metrics.
const OTHER_THREADS: usize = 4;

/// Sockets and files that are open beside connections and objects, at most.
const OTHER_DESCRIPTORS: u64 = 64;

/// Idle threads go after this.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A full table of descriptors stays full for a while; asking at once again would burn a core.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// For what says in a bucket that it is being changed: no longer than the service manager waits.
const TAKE_BACK: Duration = Duration::from_secs(10);

/// Who is refused again and again fills no log.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The last word to a connection that has no place.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    cache-control: no-store\r\nretry-after: 1\r\ncontent-type: text/plain\r\n\
    content-length: 30\r\n\r\ntoo many connections are open\n";

/// Reads the configuration again.
pub type Reread = dyn Fn() -> Result<Config>;

/// A server that has its store, its tokens and its sockets.
pub struct Server {
    config: Config,
    served: Arc<Served>,
    registry: Registry,
    listener: Listener,
    nbd: Option<Listener>,
    metrics: Option<MetricsListener>,
    runtime: Runtime,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Takes everything it needs.
    ///
    /// # Errors
    /// For a configuration that cannot be served, a directory that is no store, tokens that cannot
    /// be read, an address that is taken.
    pub fn claim(config: Config) -> Result<Self> {
        config.check()?;
        let tokens = config.token_file.as_deref().map(Tokens::read).transpose()?;
        let acceptor = config.tls.acceptor()?;
        let mut registry = Registry::with_prefix("snapshotter_remote_store");
        let measured = Measured::register(&mut registry);
        let convert = config
            .convert
            .enabled
            .then(|| Conversions::new(config.convert.clone(), config.place(), measured.clone()));
        // It may make the store.
        let conversions = convert.transpose()?;
        let reader = Reader::open(config.place())?;
        let served = Served {
            conversions,
            traces: reader.traces(),
            reader,
            tokens: tokens.map(|tokens| RwLock::new(Arc::new(tokens))),
            acceptor: acceptor.map(RwLock::new),
            has_client_ca: config.tls.client_ca_file.is_some(),
            measured,
            reads: Arc::new(Semaphore::new(config.server.threads_max)),
            trace_turn: Arc::new(Semaphore::new(1)),
        };
        let listening = |source| Error::Listen {
            address: config.listen,
            source,
        };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(config.threads_max())
            .thread_keep_alive(THREAD_KEEP_ALIVE)
            .build()
            .map_err(listening)?;
        let listener = runtime.block_on(async { listen(config.listen) });
        let nbd = config.nbd.listen.map(|address| {
            let listening = runtime.block_on(async { listen(address) });
            listening.map_err(|source| Error::Listen { address, source })
        });
        let metrics = config.metrics.address.as_ref().map(MetricsListener::bind);
        Ok(Self {
            listener: listener.map_err(listening)?,
            nbd: nbd.transpose()?,
            metrics: metrics.transpose()?,
            served: Arc::new(served),
            registry,
            runtime,
            config,
        })
    }

    /// Serves until a signal ends it. On SIGHUP, `reread` says what counts from then on.
    ///
    /// # Errors
    /// What keeps it from serving.
    pub fn run(self, logging: &Logging, reread: &Reread) -> Result<()> {
        let Self {
            config,
            served,
            registry,
            listener,
            nbd,
            metrics,
            runtime,
        } = self;
        let (trigger, shutdown) = Shutdown::channel();
        let ended = runtime.block_on(async {
            let listening = |source| Error::Listen {
                address: config.listen,
                source,
            };
            let listener = TcpListener::from_std(listener).map_err(listening)?;
            let nbd = nbd.map(TcpListener::from_std).transpose();
            let nbd = nbd.map_err(listening)?;
            let mut signals = Signals::new().map_err(listening)?;
            if let Some(metrics) = metrics {
                tokio::spawn(metrics.serve(Arc::new(registry), shutdown.clone()));
            }
            tokio::spawn(notify::keep_alive(shutdown.clone()));
            let status = status(&config, &listener, nbd.as_ref()).map_err(listening)?;
            raise_descriptors(&config);
            warn_about(&config, &served);
            notify::ready(&status);
            tracing::info!(status, "ready");
            let mut connections = Connections::new(Arc::clone(&served), &config, shutdown);
            loop {
                tokio::select! {
                    accepted = listener.accept() => connections.take(accepted, Protocol::Http).await,
                    accepted = accept(nbd.as_ref()) => connections.take(accepted, Protocol::Nbd).await,
                    Some(_ended) = connections.tasks.join_next() => {}
                    asked = signals.next() => match asked {
                        Asked::End => break,
                        Asked::Reload => reload(&served, logging, reread, &status),
                    },
                }
            }
            drop((listener, nbd));
            trigger.pull();
            connections.end(config.server.drain(), signals).await;
            Ok(())
        });
        // Conversions that run are not: who cleans up need not wait until they are taken for dead.
        store::take_words_back(TAKE_BACK);
        // Reads of a disk that hangs are not waited for.
        runtime.shutdown_background();
        tracing::info!("ended");
        ended
    }
}

/// What operators see of it.
fn status(
    config: &Config,
    listener: &TcpListener,
    nbd: Option<&TcpListener>,
) -> std::io::Result<String> {
    let scheme = if config.tls.is_on() { "https" } else { "http" };
    let address = listener.local_addr()?;
    let mut status = format!("serving {} on {scheme}://{address}", config.place());
    if let Some(nbd) = nbd {
        let scheme = if config.tls.is_on() { "nbds" } else { "nbd" };
        status += &format!(" and {scheme}://{}", nbd.local_addr()?);
    }
    Ok(status)
}

/// The next client of one that may be there.
async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Lets this process open as many files as it may.
fn raise_descriptors(config: &Config) {
    let limits = &config.server;
    // Each connection with an object, each thread on its way to one, and NBD clients.
    let pairs = (limits.connections_max + limits.threads_max) as u64;
    let nbd = config.nbd.listen.map_or(0, |_| config.nbd.connections_max) as u64;
    let wanted = 2 * pairs + nbd + OTHER_DESCRIPTORS;
    match open_files::raise() {
        Ok(most) if most >= wanted => {}
        Ok(most) => tracing::warn!(
            most,
            wanted,
            "fewer files can be open than connections_max needs: raise LimitNOFILE, or lower it"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

fn listen(address: SocketAddr) -> std::io::Result<Listener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // After a restart, connections of the last one may still be there in the kernel.
    socket.set_reuseaddr(true)?;
    // Connections have it from the socket that listens.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    // So is this: a client that may be silent for days, and whose host is gone, does not keep its place.
    socket.set_keepalive(true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &KEEPALIVE_PROBE_SECONDS)?;
    setsockopt(&socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

impl Config {
    /// Threads for what blocks.
    fn threads_max(&self) -> usize {
        let conversions_max = if self.convert.enabled {
            self.convert.conversions_max
        } else {
            0
        };
        self.server.threads_max + conversions_max + OTHER_THREADS
    }
}

fn warn_about(config: &Config, served: &Served) {
    let is_reached = config.reached().is_some();
    match &served.tokens {
        None if !served.is_limited() && is_reached => tracing::warn!(
            "there is no token_file and no authority of hosts: whoever reaches the address can read every image"
        ),
        None => {}
        Some(tokens) => {
            let tokens = tokens
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .count();
            tracing::info!(tokens, "only hosts with a token are answered");
        }
    }
    if config.nbd.listen.is_some() && config.token_file.is_some() {
        tracing::warn!(
            "NBD has no place for a token: whoever has a certificate of client_ca_file reads every disk by it, without one"
        );
    }
    if config.convert.enabled {
        let images = config.convert.images.join(" ");
        tracing::info!(images, "images are converted when hosts ask for them");
    }
    if config.plaintext && is_reached {
        tracing::warn!("images and tokens are sent as plain text");
    }
}

/// Reads tokens, certificates and the level of the log again; what is wrong leaves them as they were.
fn reload(served: &Served, logging: &Logging, reread: &Reread, status: &str) {
    notify::reloading();
    let read = reread().and_then(|config| {
        let tokens = config.token_file.as_deref().map(Tokens::read).transpose()?;
        config.tls.check()?;
        let acceptor = config.tls.acceptor()?;
        let has_client_ca = config.tls.client_ca_file.is_some();
        let tokens = place(&served.tokens, tokens.map(Arc::new));
        let acceptor = place(&served.acceptor, acceptor);
        let (Some(tokens), Some(acceptor), true) =
            (tokens, acceptor, has_client_ca == served.has_client_ca)
        else {
            let what = "token_file, certificate_file and client_ca_file come or go at a start only: restart the \
                        server";
            return Err(Error::Setting(what.to_owned()));
        };
        tokens();
        acceptor();
        logging.set_level(config.log.level);
        Ok(())
    });
    match read {
        Ok(()) => tracing::info!("tokens, certificates and the level of the log were read again"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "tokens, certificates and the level of the log stay as they were");
        }
    }
    notify::ready(status);
}

/// Puts what was read in the place of what counts, when that is called; nothing where one of them is not there.
fn place<T>(now: &Option<RwLock<T>>, read: Option<T>) -> Option<impl FnOnce()> {
    let both = match (now, read) {
        (Some(now), Some(read)) => Some((now, read)),
        (None, None) => None,
        _ => return None,
    };
    Some(move || {
        if let Some((now, read)) = both {
            *now.write().unwrap_or_else(PoisonError::into_inner) = read;
        }
    })
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Nbd,
}

/// The connections that are open.
struct Connections {
    served: Arc<Served>,
    exports: Arc<Exports>,
    limits: Limits,
    shutdown: Shutdown,
    places: Arc<Semaphore>,
    nbd_places: Arc<Semaphore>,
    tasks: JoinSet<()>,
    told: Option<Instant>,
}

impl Connections {
    fn new(served: Arc<Served>, config: &Config, shutdown: Shutdown) -> Self {
        let limits = config.server;
        Self {
            exports: Exports::new(Arc::clone(&served), config.nbd.cache_mebibytes << 20),
            served,
            limits,
            shutdown,
            places: Arc::new(Semaphore::new(limits.connections_max)),
            nbd_places: Arc::new(Semaphore::new(config.nbd.connections_max)),
            tasks: JoinSet::new(),
            told: None,
        }
    }

    async fn take(
        &mut self,
        accepted: std::io::Result<(TcpStream, SocketAddr)>,
        protocol: Protocol,
    ) {
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                return tokio::time::sleep(PAUSE).await;
            }
        };
        let places = match protocol {
            Protocol::Http => &self.places,
            Protocol::Nbd => &self.nbd_places,
        };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            return self.refuse(&socket, protocol);
        };
        let (limits, shutdown) = (self.limits, self.shutdown.clone());
        match protocol {
            Protocol::Http => {
                let served = Arc::clone(&self.served);
                self.tasks.spawn(async move {
                    connection::serve(socket, peer, served, limits, shutdown).await;
                    drop(place);
                });
            }
            Protocol::Nbd => {
                let exports = Arc::clone(&self.exports);
                self.tasks.spawn(async move {
                    nbd::serve(socket, peer, exports, limits, shutdown).await;
                    drop(place);
                });
            }
        }
    }

    fn refuse(&mut self, socket: &TcpStream, protocol: Protocol) {
        self.served.measured.refused();
        if self.served.acceptor.is_none() && protocol == Protocol::Http {
            // Who does not hear it sees that it was closed.
            let _said = socket.try_write(REFUSAL);
        }
        if self.told.is_none_or(|told| told.elapsed() > TOLD_EVERY) {
            tracing::warn!(?protocol, "connections are refused: too many are open");
            self.told = Some(Instant::now());
        }
    }

    /// Waits until all have ended, so long and no longer; another signal ends it at once.
    async fn end(mut self, limit: Duration, mut signals: Signals) {
        let connections = self.tasks.len();
        notify::stopping(&format!("{connections} connections end"));
        tracing::info!(connections, "ending");
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let is_done = tokio::select! {
            () = all => true,
            () = tokio::time::sleep(limit) => false,
            () = signals.end() => false,
        };
        if !is_done {
            tracing::warn!(connections = self.tasks.len(), "answers are cut off");
            self.tasks.shutdown().await;
        }
    }
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
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    async fn end(&mut self) {
        while !matches!(self.next().await, Asked::End) {}
    }
}
