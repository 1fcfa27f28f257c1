//! The start of a rich container that goes on until its program is ready: by its own word, by a file in
//! the container, or by a port. All of it is seen from outside; nothing that comes from inside is
//! believed but that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bundle::rich::ready::{Readiness, What};
use mounts::{LastLink, RootDir};
use network::Namespace;

use crate::container::Container;
use crate::process::{Liveness, ProcessId};
use crate::{Error, Result, wait};

/// Files and ports are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// So many messages are taken at a time: whoever sends them without end keeps nobody from a deadline.
const MESSAGES_MAX: usize = 64;

/// Longest message that is looked at.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What is waited for, from before the start on.
#[derive(Debug)]
pub(crate) struct Awaited<'a> {
    readiness: &'a Readiness,
    watch: Watch,
}

#[derive(Debug)]
enum Watch {
    Messages(UnixDatagram),
    /// In the container.
    File(PathBuf),
    Port(u16),
}

impl Container {
    /// Begins to look, before the program is started; none: nobody waits for it.
    pub(crate) fn begin_to_await(&self) -> Result<Option<Awaited<'_>>> {
        let Some(readiness) = &self.journal.ready else {
            return Ok(None);
        };
        let watch = match &readiness.what {
            What::Notified(name) | What::Booted(name) => Watch::Messages(self.listen(name)?),
            What::File(path) => Watch::File(PathBuf::from(path)),
            What::Port(port) => Watch::Port(*port),
        };
        Ok(Some(Awaited { readiness, watch }))
    }

    /// A socket in the network namespace of the container, where abstract names are looked up.
    fn listen(&self, name: &str) -> Result<UnixDatagram> {
        let what = format!("listen at @{name} for {}", bundle::rich::ready::READY);
        let bind = || {
            let address = SocketAddr::from_abstract_name(name)?;
            let socket = UnixDatagram::bind_addr(&address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let init = self.init()?.pid;
        let failed = |source| Error::Traffic {
            field: what.clone(),
            source,
        };
        let namespace = Namespace::of_process(init).map_err(failed)?;
        let bound = namespace.run(|| Ok(bind())).map_err(failed)?;
        bound.map_err(Error::io(what.clone()))
    }

    /// Waits until the program is ready.
    ///
    /// # Errors
    /// [`Error::NotReady`] after the time that the annotation allows, [`Error::EndedUnready`].
    pub(crate) fn await_ready(&self, awaited: Awaited<'_>) -> Result<()> {
        let init = self.init()?;
        let limit = Duration::from_secs(awaited.readiness.timeout_s.into());
        let deadline = Instant::now() + limit;
        let pidfd = sys::process::pidfd_open(init.as_pid()).ok();
        loop {
            // Before the look: what it did last counts.
            let is_alive = init.liveness()? == Liveness::Alive;
            if awaited.watch.is_ready(init.pid)? {
                awaited.watch.go_on(init);
                return Ok(());
            }
            let value = awaited.readiness.text();
            if !is_alive {
                return Err(Error::EndedUnready { value });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::NotReady { value, limit });
            }
            awaited.watch.wait(pidfd.as_ref(), left)?;
        }
    }
}

impl Watch {
    /// Waits until it is worth a look.
    fn wait(&self, init: Option<&OwnedFd>, limit: Duration) -> Result<()> {
        let init = init.map(AsFd::as_fd);
        let (messages, limit) = match (self, init) {
            (Self::Messages(socket), Some(_)) => (Some(socket.as_fd()), limit),
            (Self::Messages(socket), None) => (Some(socket.as_fd()), LOOK_EVERY.min(limit)),
            (Self::File(_) | Self::Port(_), _) => (None, LOOK_EVERY.min(limit)),
        };
        let all: Vec<_> = messages.into_iter().chain(init).collect();
        wait::any_readable(&all, limit)
    }

    /// What the program says later is read and left, as long as this process and init live: it is not
    /// to be told that nobody listens, or to wait for somebody who reads.
    fn go_on(self, init: ProcessId) {
        if !matches!(self, Self::Messages(_)) {
            return;
        }
        let read = move || {
            let pidfd = sys::process::pidfd_open(init.as_pid()).ok();
            while init.liveness().is_ok_and(|it| it == Liveness::Alive) {
                let heard = self.wait(pidfd.as_ref(), Duration::MAX);
                if heard.and_then(|()| self.is_ready(init.pid)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("readiness".to_owned());
        if let Err(error) = thread.spawn(read) {
            tracing::warn!(%error, "nobody reads what a program says from now on");
        }
    }

    fn is_ready(&self, init: i32) -> Result<bool> {
        match self {
            Self::Messages(socket) => says_ready(socket),
            Self::File(path) => {
                // Gone with init, which is seen next.
                let Ok(root) = RootDir::open(Path::new(&format!("/proc/{init}/root"))) else {
                    return Ok(false);
                };
                // A loop of links, or no permission: it may be mended yet.
                Ok(matches!(root.find(path, LastLink::Follow), Ok(Some(_))))
            }
            Self::Port(port) => {
                let net = format!("/proc/{init}/net");
                match launch::listening::is_listening(Path::new(&net), *port) {
                    // ESRCH, EINVAL: init ends.
                    Err(_) if !Path::new(&net).join("tcp").exists() => Ok(false),
                    told => told.map_err(Error::io(format!("look at port {port}"))),
                }
            }
        }
    }
}

fn says_ready(socket: &UnixDatagram) -> Result<bool> {
    let mut message = [0; MESSAGE_BYTES_MAX];
    for _ in 0..MESSAGES_MAX {
        match socket.recv(&mut message) {
            Ok(length) => {
                if launch::says_ready(message.get(..length).unwrap_or_default()) {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(Error::io("read what a program says")(error)),
        }
    }
    Ok(false)
}
