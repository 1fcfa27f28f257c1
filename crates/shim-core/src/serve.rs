//! The process that `start` leaves behind: one thread that serves the Task API, reaps children
//! and sends events, until it is told to end or nobody needs it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bundle::names;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use ttrpc::asynchronous::{Server, transport::Listener};

use crate::blocking::{Blocking, beside};
use crate::events::Publisher;
use crate::exits::Exits;
use crate::flags::Flags;
use crate::handover::{self, Outcome, Received};
use crate::runtime::Runtime;
use crate::service::services;
use crate::shim::{Shim, State, World};
use crate::{ShimError, forgotten, logging, sandbox, socket};

/// A shim without containers for so long was forgotten: containerd was killed after `start`. Between
/// `start` and Create, containerd 2.x may have mounts to make.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// After a start or an end it is quiet for so long before the code that did it is given back.
const QUIET: Duration = Duration::from_secs(1);

/// How often a shim without containers looks whether its bundle is still there.
const IDLE_CHECK: Duration = Duration::from_secs(2);

/// For watched processes whose end no signal tells (an adopted one that somebody else reaped), and
/// for containers that containerd has forgotten.
const REAP_EVERY: Duration = Duration::from_secs(10);

/// A socket without anybody behind it may be about to be listened to.
const SWEEP_AGE_MIN: Duration = Duration::from_secs(60);

/// How long a shim that ends waits for its look for sockets of the dead.
const SWEEP_MAX: Duration = Duration::from_secs(2);

/// `start` binds a socket and hands it over.
const HANDOVER_MAX: Duration = Duration::from_secs(30);

/// What containerd may take for the last events.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// tokio's own threads append to log files, no more: as many as disks may hang for.
const THREADS_MAX: usize = 4096;

/// Idle ones go soon.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Serves until the end of the shim.
pub(crate) fn serve<R: Runtime>(
    runtime: R,
    flags: &Flags,
    ttrpc_address: &str,
) -> Result<(), ShimError> {
    let Some(place) = place(flags).map_err(|e| ShimError::failed("take over the socket", &e))?
    else {
        return Ok(());
    };
    logging::to_fifo(Path::new(names::SHIM_LOG), flags.debug)
        .map_err(|e| ShimError::failed("open the log", &e))?;
    if let Err(error) = sys::set_subreaper() {
        // Before Linux 3.4. A runtime that needs it has its own way there.
        tracing::warn!(%error, "orphans of containers will not be reaped here");
    }
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS_MAX)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()
        .map_err(|e| ShimError::failed("start the runtime", &e))?;
    let served = tokio.block_on(run(runtime, flags, ttrpc_address, place));
    // A call that hangs must not keep the process.
    tokio.shutdown_background();
    served
}

/// Where to serve.
struct Place {
    listener: UnixListener,
    path: PathBuf,
    /// Tells whether `start` came to its end; none without one.
    strand: Option<UnixStream>,
}

/// The socket `start` gives by standard input, which is /dev/null afterwards; or one of our own.
/// None when `start` was killed.
fn place(flags: &Flags) -> io::Result<Option<Place>> {
    let stdin: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let path = PathBuf::from(&flags.socket);
    match handover::receive(stdin, HANDOVER_MAX)? {
        Received::Listener(listener, strand) => Ok(Some(Place {
            listener,
            path,
            strand: Some(strand),
        })),
        Received::StarterDied => socket::remove_if_dead(&path).map(|()| None),
        Received::NoStrand => {
            let claim = socket::claim(&path)?.ok_or(io::ErrorKind::AddrInUse)?;
            Ok(Some(Place {
                listener: claim.bind()?,
                path,
                strand: None,
            }))
        }
    }
}

/// Sockets of the dead, once per shim and beside its work.
fn sweep(dir: &Path) {
    let swept = std::fs::read_to_string("/proc/net/unix")
        .and_then(|listed| socket::sweep(dir, &listed, SWEEP_AGE_MIN));
    match swept {
        Ok(0) => {}
        Ok(sockets) => tracing::info!(sockets, "sockets of killed shims were removed"),
        Err(error) => tracing::debug!(%error, "sockets of killed shims were not looked for"),
    }
}

async fn run<R: Runtime>(
    runtime: R,
    flags: &Flags,
    ttrpc_address: &str,
    place: Place,
) -> Result<(), ShimError> {
    let Place {
        listener,
        path,
        strand,
    } = place;
    let dir = path.parent().map(Path::to_owned).unwrap_or_default();
    let (publisher, sending) = Publisher::new(&flags.namespace, ttrpc_address);
    let sending = tokio::spawn(sending);
    let exits = Exits::default();
    let world = World {
        namespace: flags.namespace.as_str().into(),
        blocking: Blocking::new(),
        exits: exits.clone(),
        publisher: publisher.clone(),
    };
    let identity = runtime.identity();
    let shim = Shim::new(runtime, world, path);
    let mut server = server(listener, &shim)?;
    server
        .start()
        .await
        .map_err(|e| ShimError::failed("serve", &e))?;
    tracing::info!(
        id = flags.id,
        namespace = flags.namespace,
        runtime = identity.name,
        version = identity.version,
        "shim serves"
    );
    let sweeping = beside("sweep sockets", move || sweep(&dir));
    let following = strand.map(|strand| tokio::spawn(follow(strand, Arc::clone(&shim))));
    let ended = watch_over(&shim, &exits).await;
    swept(sweeping).await;
    if let Some(following) = following {
        following.abort();
    }
    publisher.flush(FLUSH_MAX).await;
    if let Err(error) = server.shutdown().await {
        tracing::debug!(%error, "clients were cut off");
    }
    sending.abort();
    tracing::info!("shim ends");
    ended
}

/// Waits for the look into the sockets' folder, which somebody else may have locked.
async fn swept(sweeping: Result<oneshot::Receiver<()>, ShimError>) {
    let sweeping = match sweeping {
        Ok(sweeping) => sweeping,
        Err(error) => {
            tracing::debug!(%error, "sockets of killed shims were not looked for");
            return;
        }
    };
    if tokio::time::timeout(SWEEP_MAX, sweeping).await.is_err() {
        let seconds = SWEEP_MAX.as_secs();
        tracing::warn!(
            seconds,
            "the look for sockets of killed shims has not ended"
        );
    }
}

/// Ends a shim that nobody knows of.
async fn follow<R: Runtime>(strand: UnixStream, shim: Arc<Shim<R>>) {
    if !matches!(handover::outcome(strand).await, Ok(Outcome::Known)) {
        tracing::warn!("start was killed before it could answer");
        shim.shut_down_if_idle();
    }
}

fn server<R: Runtime>(listener: UnixListener, shim: &Arc<Shim<R>>) -> Result<Server, ShimError> {
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener))
        .map_err(|e| ShimError::failed("serve the socket", &e))?;
    Ok(Server::new()
        .add_listener(Listener::from(listener))
        .register_service(services(Arc::clone(shim)))
        .register_service(sandbox::services(Arc::clone(shim))))
}

/// Reaps, and returns when the shim shall end.
async fn watch_over<R: Runtime>(shim: &Arc<Shim<R>>, exits: &Exits) -> Result<(), ShimError> {
    let listen = |kind| signal(kind).map_err(|e| ShimError::failed("listen to signals", &e));
    let mut child = listen(SignalKind::child())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    // Go's shim dumps its stacks; dying of it would be a surprise.
    let mut user = listen(SignalKind::user_defined1())?;
    let mut state = shim.state();
    let mut idle_since = Instant::now();
    let mut quiet_at = Some(Instant::now() + QUIET);
    let mut giving_up: Option<JoinHandle<()>> = None;
    // What ended before the signal was listened to.
    exits.reap();
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Ending => return Ok(()),
            State::Serving(0) => {}
            State::Serving(_) => idle_since = Instant::now(),
        }
        tokio::select! {
            _ = child.recv() => {
                exits.reap();
                quiet_at = Some(Instant::now() + QUIET);
            }
            () = at(quiet_at), if quiet_at.is_some() => {
                quiet_at = None;
                give_back_code();
            }
            // Go's shim ends at once, and containerd then kills its containers. A shim with
            // containers that stays is of more use; there is SIGKILL.
            _ = terminate.recv() => end_on_signal(shim),
            _ = interrupt.recv() => end_on_signal(shim),
            _ = user.recv() => tracing::info!(state = ?now, "state of the shim"),
            () = tokio::time::sleep(IDLE_CHECK), if now == State::Serving(0) => {
                if idle_since.elapsed() >= IDLE_MAX || bundle_is_gone() {
                    tracing::info!("nobody needs this shim");
                    shim.shut_down_if_idle();
                }
            }
            () = tokio::time::sleep(REAP_EVERY), if now != State::Serving(0) => {
                exits.reap();
                if giving_up.as_ref().is_none_or(JoinHandle::is_finished) {
                    let containers = shim.forgotten();
                    giving_up = (!containers.is_empty())
                        .then(|| tokio::spawn(forgotten::give_up(containers)));
                }
            }
            changed = state.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                quiet_at = Some(Instant::now() + QUIET);
            }
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A shim is idle for nearly all its life, and there are many: the code that made a container is
/// not kept in memory while nothing is made.
fn give_back_code() {
    if let Err(error) = sys::memory::forget_program_pages() {
        tracing::debug!(%error, "pages of code stay in memory");
    }
}

/// Whether containerd has removed the folder this process lives in: it knows of no container here.
fn bundle_is_gone() -> bool {
    std::fs::metadata(".").is_ok_and(|metadata| metadata.nlink() == 0)
}

fn end_on_signal<R: Runtime>(shim: &Arc<Shim<R>>) {
    shim.shut_down_if_idle();
    let state: watch::Receiver<State> = shim.state();
    if *state.borrow() != State::Ending {
        tracing::warn!("a signal asks the shim to end, but it has containers");
    }
}
