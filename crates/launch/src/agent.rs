//! Further processes of a container whose kernel has no setns(2): pid 1, which stays, forks them.
//!
//! ```text
//!   host                                  pid 1                 child
//!     | connects to the agent's socket      |                     |
//!     |------------------------------------>|------- fork ------->|
//!     | Join (+ control socket, streams) -- on the connection --->|
//!     | Exec(plan) ------------------------ on the control socket |
//!     |<--------------------------------------------------- Hello |  then as any exec, `exec.rs`
//!     |                                     |                     |
//!     |<-- Ended, on the connection --------|<----- SIGCHLD ------|
//! ```
//! Only the host reaches the socket: its name is in a directory that the container does not see. Pid 1
//! itself reads nothing. It must not execute anything, and gives its children no right of its own that
//! their plan does not name.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use sys::process::Fork;
use sys::{Child, ExitStatus, Pid};

use crate::control::{self, Ended, FromStub, ToStub};
use crate::error::{Error, Result, host};
use crate::procfs::Proc;

/// The part of pid 1 that starts processes.
pub(crate) struct Agent {
    listener: UnixListener,
    /// For its children: what the image has at `/proc` is not trusted.
    proc: Proc,
    /// Who is to be told of whose end.
    children: BTreeMap<Pid, UnixStream>,
}

/// A child that is to become a program.
pub(crate) struct Newcomer {
    connection: UnixStream,
    proc: Proc,
}

/// Which process goes on after a connection.
pub(crate) enum Side {
    /// Pid 1.
    Parent(Agent),
    /// The process that joins.
    Child(Newcomer),
}

impl Agent {
    /// An agent at this listening socket.
    pub(crate) fn new(listener: OwnedFd, proc: Proc) -> Result<Self> {
        let listener = UnixListener::from(listener);
        listener
            .set_nonblocking(true)
            .map_err(host(|| "make the agent's socket non-blocking".to_owned()))?;
        Ok(Self {
            listener,
            proc,
            children: BTreeMap::new(),
        })
    }

    /// What becomes readable when somebody connects.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Forks for one connection. Whoever cannot be served finds it closed.
    pub(crate) fn accept(mut self) -> Result<Side> {
        let connection = match self.listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) => {
                let passing = [
                    Errno::EAGAIN,
                    Errno::EINTR,
                    Errno::ECONNABORTED,
                    Errno::EMFILE,
                    Errno::ENFILE,
                    Errno::ENOMEM,
                    Errno::ENOBUFS,
                ];
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
                if passing.contains(&errno) {
                    return Ok(Side::Parent(self));
                }
                return Err(host(|| "accept a connection for an exec".to_owned())(error));
            }
        };
        match sys::process::fork() {
            Ok(Fork::Parent(pid)) => {
                sys::watch(Child::adopt(pid));
                self.children.insert(pid, connection);
                Ok(Side::Parent(self))
            }
            // All else that is open here goes: the connections of others, and the listener.
            Ok(Fork::Child) => Ok(Side::Child(Newcomer {
                connection,
                proc: self.proc,
            })),
            // No room for a process in the container's cgroup, or on the host.
            Err(_refused) => Ok(Side::Parent(self)),
        }
    }

    /// Tells whoever started it, if he is still there, that a child has ended.
    pub(crate) fn ended(&mut self, pid: Pid, status: ExitStatus) {
        if let Some(connection) = self.children.remove(&pid) {
            // The host's side may have been killed.
            let _nobody = control::send(&connection, &FromStub::Ended(Ended::from(status)), &[]);
        }
    }
}

impl Newcomer {
    /// Takes what its plan will come by, and its streams.
    pub(crate) fn equip(self) -> Result<(OwnedFd, Proc)> {
        // Pid 1 has all of them blocked.
        SigSet::empty()
            .thread_set_mask()
            .map_err(host(|| "unblock signals".to_owned()))?;
        let unexpected = || Error::Unexpected("instead of a word to join");
        let received = control::recv::<ToStub>(&self.connection)?.ok_or_else(unexpected)?;
        if received.message != ToStub::Join {
            return Err(unexpected());
        }
        let mut fds = received.fds.into_iter();
        let control = fds.next().ok_or_else(unexpected)?;
        let streams: Vec<_> = fds.collect();
        match streams.as_slice() {
            // Those of pid 1, /dev/null, until the terminal is there.
            [] => {}
            [stdin, stdout, stderr] => {
                dup2_stdin(stdin)
                    .and_then(|()| dup2_stdout(stdout.as_fd()))
                    .and_then(|()| dup2_stderr(stderr.as_fd()))
                    .map_err(host(|| "take the standard streams".to_owned()))?;
            }
            _ => return Err(unexpected()),
        }
        Ok((control, self.proc))
    }
}
