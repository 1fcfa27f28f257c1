//! The process that keeps what an init would close: the program's plan and standard streams, until
//! the program's job is started and asks for them.
//!
//! It has the filter of the container and no right but to signal. Whoever is root in the container
//! can ask; who it is then is the affair of the init.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use serde::{Deserialize, Serialize};

use crate::control::{self, Limit};
use crate::error::{Error, Result, host};
use crate::init::End;
use crate::plan::{Process, Restart};
use crate::process;

use super::OWN;

/// Where it waits; the directory is root's alone.
pub(super) fn socket() -> String {
    format!("{OWN}/application")
}

/// Whoever connects says at once what for.
const WORD_LIMIT: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Word {
    /// To get all that is kept.
    Application,
    /// To have the descriptor kept that comes with it, whose end of file tells the host side that the
    /// container has started.
    Started,
    /// To have that closed: the init listens to signals.
    Listening,
}

/// Says a word to the keeper.
///
/// # Errors
/// When there is no keeper.
pub(super) fn say(word: Word, fds: &[BorrowedFd<'_>]) -> Result<UnixStream> {
    let path = socket();
    let socket = UnixStream::connect(&path).map_err(host(|| format!("connect to {path}")))?;
    control::send(&socket, &word, fds)?;
    Ok(socket)
}

/// Begins to wait.
pub(super) fn listen() -> Result<UnixListener> {
    let path = socket();
    UnixListener::bind(&path).map_err(host(|| format!("bind {path}")))
}

/// What is given with the program's streams.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) process: Process,
    pub(super) restart: Restart,
}

/// What is kept; the standard streams are this process' own, unless there is a terminal.
pub(super) struct Keeper {
    pub(super) listener: UnixListener,
    pub(super) application: Process,
    pub(super) restart: Restart,
    pub(super) terminal: Option<OwnedFd>,
}

impl Keeper {
    /// Waits for the job, and gives it all; `container` is the program as config.json has it.
    pub(super) fn run(self, container: &Process) -> Result<End> {
        // Nobody means this process when all of the container get a signal, but with TERM all are to
        // end, and the last program of pid 1 waits for them.
        let mut kept_away = SigSet::all();
        kept_away.remove(Signal::SIGTERM);
        kept_away
            .thread_set_mask()
            .map_err(host(|| "block signals".to_owned()))?;
        process::keep_right_to_signal(container)?;
        let kept = Kept {
            process: self.application,
            restart: self.restart,
        };
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let fds = match &self.terminal {
            Some(terminal) => vec![terminal.as_fd()],
            None => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        };
        let mut started = Vec::new();
        loop {
            let (connection, _) = self.listener.accept().map_err(|source| Error::Socket {
                what: "accept",
                source,
            })?;
            match word_of(&connection) {
                // One that went away before it had all is followed by another, or by nobody.
                Some((Word::Application, _)) if control::send(&connection, &kept, &fds).is_ok() => {
                    return Ok(End::Forked);
                }
                Some((Word::Started, kept)) => started = kept,
                Some((Word::Listening, _)) => started.clear(),
                Some((Word::Application, _)) | None => {}
            }
        }
    }
}

/// What a connection of root's says, and what came with it; none: nothing that means anything.
fn word_of(connection: &UnixStream) -> Option<(Word, Vec<OwnedFd>)> {
    if !is_root(connection) {
        return None;
    }
    connection.set_nonblocking(true).ok()?;
    let limit = Limit::Until(Instant::now() + WORD_LIMIT);
    let received = control::recv_within(connection, limit).ok()??;
    connection.set_nonblocking(false).ok()?;
    Some((received.message, received.fds))
}

fn is_root(connection: &UnixStream) -> bool {
    getsockopt(connection, PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
}
