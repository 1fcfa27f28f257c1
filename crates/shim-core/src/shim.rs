//! The containers of one shim by id: made, found, given up. What happens to each is its actor's.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bundle::names;
use stdio::{Identity, Streams};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::actor::{self, Made};
use crate::blocking::{Blocking, Kind};
use crate::command::Command;
use crate::events::Publisher;
use crate::exits::Exits;
use crate::forgotten::Forgotten;
use crate::pod::SandboxRequest;
use crate::request::{Create, Stdio};
use crate::runtime::{Container, CreateRequest, Created, Runtime};
use crate::{Code, Options, ShimError, process_io, rootfs, socket};

/// What every container's actor needs of the shim.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) namespace: Arc<str>,
    pub(crate) blocking: Blocking,
    pub(crate) exits: Exits,
    pub(crate) publisher: Publisher,
}

impl World {
    /// For a new container.
    fn for_container(&self) -> Self {
        Self {
            blocking: self.blocking.for_container(),
            ..self.clone()
        }
    }
}

/// One shim.
#[derive(Debug)]
pub(crate) struct Shim<R: Runtime> {
    runtime: Arc<R>,
    world: World,
    /// Where it serves.
    socket: PathBuf,
    containers: Mutex<Containers>,
    /// Whether it serves, and how many containers.
    state: watch::Sender<State>,
}

/// What the process that serves wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// So many containers exist or are being made.
    Serving(usize),
    /// It was asked to end and will make no more.
    Ending,
}

type Containers = BTreeMap<String, Slot>;

#[derive(Debug)]
enum Slot {
    /// It is being made.
    Taken,
    Made {
        /// Its actor's mailbox.
        mailbox: mpsc::UnboundedSender<Command>,
        bundle: PathBuf,
    },
}

/// A container's id, taken; given back on drop.
#[derive(Debug)]
struct Reservation<R: Runtime> {
    shim: Arc<Shim<R>>,
    id: String,
}

impl<R: Runtime> Shim<R> {
    pub(crate) fn new(runtime: R, world: World, socket: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            runtime: Arc::new(runtime),
            world,
            socket,
            containers: Mutex::default(),
            state: watch::Sender::new(State::Serving(0)),
        })
    }

    /// Follows whether it serves.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The actor of a container.
    pub(crate) fn find(&self, id: &str) -> Result<mpsc::UnboundedSender<Command>, ShimError> {
        self.world.publisher.try_now();
        match self.lock().get(id) {
            Some(Slot::Made { mailbox, .. }) => Ok(mailbox.clone()),
            Some(Slot::Taken) | None => Err(ShimError::new(
                Code::NotFound,
                format!("container {id} not created"),
            )),
        }
    }

    /// Ends the shim when it has no containers; else nothing happens, as in Go's shim.
    pub(crate) fn shut_down_if_idle(&self) {
        self.world.publisher.try_now();
        let containers = self.lock();
        // Once only: the path may be a successor's by the second time.
        if containers.is_empty() && *self.state.borrow() != State::Ending {
            // Before the client is answered: whoever kills this process from now on leaves no
            // socket, and a `start` makes a new shim.
            if let Err(error) = socket::remove(&self.socket) {
                tracing::warn!(%error, path = %self.socket.display(), "the socket stays");
            }
            self.state.send_replace(State::Ending);
        }
    }

    /// Containers whose bundles are gone: containerd has forgotten them. So it is after a `delete`
    /// that came while they were being made.
    pub(crate) fn forgotten(&self) -> Vec<Forgotten> {
        let made: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|(id, slot)| match slot {
                Slot::Made { mailbox, bundle } => {
                    Some((Forgotten::new(id, mailbox), bundle.clone()))
                }
                Slot::Taken => None,
            })
            .collect();
        // In containerd's own directory, which is memory.
        let is_gone = |bundle: &Path| {
            std::fs::symlink_metadata(bundle)
                .is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        made.into_iter()
            .filter_map(|(container, bundle)| is_gone(&bundle).then_some(container))
            .collect()
    }

    /// Makes a container. It goes on when the client goes away; but when the client was told that
    /// it took too long, what was made is taken away again.
    pub(crate) async fn create(
        self: &Arc<Self>,
        create: Create,
        limit: Duration,
    ) -> Result<i32, ShimError> {
        self.create_after(|| Ok(()), create, limit).await
    }

    /// The same with a step before it, for which the id is taken and the limit holds already. Blocking.
    async fn create_after(
        self: &Arc<Self>,
        before: impl FnOnce() -> Result<(), ShimError> + Send + 'static,
        create: Create,
        limit: Duration,
    ) -> Result<i32, ShimError> {
        let reservation = self.reserve(&create.id)?;
        let deadline = Instant::now() + limit;
        let making = tokio::spawn(make(reservation, before, create, deadline));
        match tokio::time::timeout_at(deadline, making).await {
            Ok(made) => made.unwrap_or_else(|e| Err(ShimError::new(Code::Internal, e.to_string()))),
            Err(_elapsed) => Err(ShimError::new(
                Code::DeadlineExceeded,
                format!("create: not done within {} s", limit.as_secs()),
            )),
        }
    }

    /// containerd's namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.world.namespace
    }

    /// Makes a container of what the runtime writes for a pod.
    pub(crate) async fn create_sandbox(
        self: &Arc<Self>,
        request: SandboxRequest,
        limit: Duration,
    ) -> Result<i32, ShimError> {
        let create = Create {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: Vec::new(),
            stdio: Stdio::default(),
            options: Options::default(),
        };
        let runtime = Arc::clone(&self.runtime);
        let write = move || runtime.sandbox(&request);
        self.create_after(write, create, limit).await
    }

    fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation<R>, ShimError> {
        let mut containers = self.lock();
        if *self.state.borrow() == State::Ending {
            return Err(ShimError::new(Code::Unavailable, "the shim is ending"));
        }
        if containers.contains_key(id) {
            return Err(ShimError::new(
                Code::AlreadyExists,
                format!("container {id} exists"),
            ));
        }
        containers.insert(id.to_owned(), Slot::Taken);
        self.state.send_replace(State::Serving(containers.len()));
        Ok(Reservation {
            shim: Arc::clone(self),
            id: id.to_owned(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Containers> {
        // No code panics while it holds the lock.
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Runtime> Drop for Reservation<R> {
    fn drop(&mut self) {
        let mut containers = self.shim.lock();
        containers.remove(&self.id);
        if *self.shim.state.borrow() != State::Ending {
            self.shim
                .state
                .send_replace(State::Serving(containers.len()));
        }
    }
}

/// Makes a container and starts its actor, which keeps the reservation.
async fn make<R: Runtime>(
    reservation: Reservation<R>,
    before: impl FnOnce() -> Result<(), ShimError> + Send + 'static,
    create: Create,
    deadline: Instant,
) -> Result<i32, ShimError> {
    let world = reservation.shim.world.for_container();
    let runtime = Arc::clone(&reservation.shim.runtime);
    let namespace = Arc::clone(&world.namespace);
    let socket = reservation.shim.socket.clone();
    let expectation = world.exits.expect();
    let (create, result) = world
        .blocking
        .run(Kind::Client, "create", move || {
            let result = before()
                .and_then(|()| write_address(&create, &socket))
                .and_then(|()| on_host(&*runtime, &namespace, &create));
            Ok((create, result))
        })
        .await?;
    world.exits.reap();
    let OnHost {
        container,
        created,
        streams,
        oom,
    } = result?;
    let pid = created.pid;
    let late = deadline <= Instant::now();
    let bundle = create.bundle.clone();
    let mut made = Made::new(create, Arc::new(container), pid, oom);
    if let Err(error) = too_late(late).and_then(|()| made.copy(streams, created.terminal)) {
        let container = Arc::clone(&made.container);
        // It did not come to be for the client; what is left is told to the log.
        let undone = world
            .blocking
            .run(Kind::Own, "undo create", move || undo(&*container, &bundle))
            .await;
        if let Err(error) = undone {
            tracing::error!(id = reservation.id, %error, "a container's creation was not undone");
        }
        return Err(error);
    }
    let (mailbox, commands) = mpsc::unbounded_channel();
    let slot = Slot::Made { mailbox, bundle };
    let actor = actor::Actor::new(made, world, commands, &expectation);
    drop(expectation);
    reservation.shim.lock().insert(reservation.id.clone(), slot);
    tokio::spawn(async move {
        let last = actor.run().await;
        // From now on the shim may end, and only then the client may ask it to.
        drop(reservation);
        last.answer();
    });
    Ok(pid)
}

fn too_late(late: bool) -> Result<(), ShimError> {
    if late {
        return Err(ShimError::new(
            Code::DeadlineExceeded,
            "create took too long",
        ));
    }
    Ok(())
}

/// A container that exists on the host.
struct OnHost<C> {
    container: C,
    created: Created,
    streams: Streams,
    oom: Result<Option<OwnedFd>, ShimError>,
}

/// Everything on the host that a container needs; when it fails, nothing of it stays. Blocking.
fn on_host<R: Runtime>(
    runtime: &R,
    namespace: &str,
    create: &Create,
) -> Result<OnHost<R::Container>, ShimError> {
    let bundle = &create.bundle;
    write_options(create)?;
    rootfs::mount(bundle, &create.rootfs)?;
    let made = (|| {
        let identity = Identity {
            id: &create.id,
            namespace,
        };
        let (streams, io) = process_io::open(&create.stdio, identity, &create.options)?;
        let (container, created) = runtime.create(CreateRequest {
            namespace: namespace.to_owned(),
            id: create.id.clone(),
            bundle: bundle.clone(),
            io,
            options: create.options.clone(),
        })?;
        let path = bundle.join(names::INIT_PID);
        if let Err(e) = std::fs::write(&path, created.pid.to_string()) {
            // The error of the write is the one to tell; `delete` tries the rest again.
            let _left = container.delete();
            return Err(ShimError::failed(&format!("write {}", path.display()), &e));
        }
        let oom = container.oom_descriptor();
        Ok(OnHost {
            container,
            created,
            streams,
            oom,
        })
    })();
    made.inspect_err(|_| {
        // As above.
        let _left = rootfs::unmount(bundle);
    })
}

/// Leaves where the container's shim is for those who are not containerd. `start` has done that, but for a container of
/// a sandbox containerd 2.x starts nothing.
fn write_address(create: &Create, socket: &Path) -> Result<(), ShimError> {
    let path = create.bundle.join(names::ADDRESS);
    if path.exists() {
        return Ok(());
    }
    std::fs::write(&path, socket::address(socket))
        .map_err(|e| ShimError::failed(&format!("write {}", path.display()), &e))
}

/// Leaves what `delete` needs to know when this process is dead.
fn write_options(create: &Create) -> Result<(), ShimError> {
    let path = create.bundle.join(names::OPTIONS);
    serde_json::to_vec(&create.options)
        .map_err(std::io::Error::from)
        .and_then(|text| std::fs::write(&path, text))
        .map_err(|e| ShimError::failed(&format!("write {}", path.display()), &e))
}

fn undo<C: Container>(container: &C, bundle: &Path) -> Result<(), ShimError> {
    container.delete()?;
    rootfs::unmount(bundle)
}
