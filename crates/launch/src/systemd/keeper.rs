//! The process that keeps what systemd would close: the program's plan and standard streams, until
//! the program's unit is started and asks for them.
//!
//! It has the filter of the container and no right but to signal. Whoever is root in the container
//! can ask; who it is then is the affair of systemd.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::control::{self, ToStub};
use crate::error::{Error, Result, host};
use crate::init::End;
use crate::plan::{ExecPlan, Process};
use crate::process;

use super::OWN;

/// Where it waits; the directory is root's alone.
pub(super) fn socket() -> String {
    format!("{OWN}/application")
}

/// Begins to wait.
pub(super) fn listen() -> Result<UnixListener> {
    let path = socket();
    UnixListener::bind(&path).map_err(host(|| format!("bind {path}")))
}

/// What is kept; the standard streams are this process' own, unless there is a terminal.
pub(super) struct Keeper {
    pub(super) listener: UnixListener,
    pub(super) application: Process,
    pub(super) terminal: Option<OwnedFd>,
}

impl Keeper {
    /// Waits for the unit, and gives it all; `container` is the program as config.json has it.
    pub(super) fn run(self, container: &Process) -> Result<End> {
        // Nobody means this process when all of the container get a signal, but with TERM all are to
        // end, and the last program of pid 1 waits for them.
        let mut kept_away = SigSet::all();
        kept_away.remove(Signal::SIGTERM);
        kept_away
            .thread_set_mask()
            .map_err(host(|| "block signals".to_owned()))?;
        process::keep_right_to_signal(container)?;
        let plan = ToStub::Exec(Box::new(ExecPlan {
            namespaces: Vec::new(),
            process: self.application,
        }));
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let fds = match &self.terminal {
            Some(terminal) => vec![terminal.as_fd()],
            None => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        };
        loop {
            let (connection, _) = self.listener.accept().map_err(|source| Error::Socket {
                what: "accept",
                source,
            })?;
            // One that went away before it had all is followed by another, or by nobody.
            if is_root(&connection) && control::send(&connection, &plan, &fds).is_ok() {
                return Ok(End::Forked);
            }
        }
    }
}

fn is_root(connection: &UnixStream) -> bool {
    getsockopt(connection, PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
}
