//! Log binaries, by containerd's protocol (`runtime/v2/logging`): descriptor 3 reads the process's
//! output, 4 its errors, and by 5 the binary says that it is ready.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::{Child, Signal, Spawn};
use tokio::io::Interest;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::port::watched_by_tokio;
use crate::{Identity, Readiness};

/// How long a log binary may take until it is ready.
const READY_LIMIT_MS: u16 = 30_000;
/// How long a log binary may take to end after SIGTERM, as in containerd's shim, rounded.
const TERM_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a log binary where the kernel does not tell its end.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A log binary to start.
#[derive(Debug)]
pub(crate) struct LoggerPlan<'a> {
    pub(crate) path: &'a Path,
    pub(crate) args: &'a [OsString],
    pub(crate) readiness: Readiness,
    /// Its descriptor 3.
    pub(crate) stdout: Option<OwnedFd>,
    /// Its descriptor 4.
    pub(crate) stderr: Option<OwnedFd>,
}

/// A log binary that is ready. Dropped, it is killed; nothing waits for its end, which may take its
/// time: [`sys::reap`] finds it.
#[derive(Debug)]
pub(crate) struct Ready(Option<Child>);

/// A log binary at work. Dropped, it runs on, and ends by itself when nobody writes any more.
#[derive(Debug)]
pub(crate) struct Logger(Option<Child>);

impl LoggerPlan<'_> {
    /// Starts it and waits until it is ready. Blocking.
    pub(crate) fn start(self, identity: Identity<'_>) -> Result<Ready> {
        let path = self.path;
        let failed = |source| Error::LoggerStart {
            path: path.to_owned(),
            source,
        };
        let (ready, says_ready) = sys::pipe_cloexec().map_err(failed)?;
        // containerd gives a log binary this environment and no other.
        let variable = |key: &str, value: &str| (OsString::from(key), OsString::from(value));
        let env = vec![
            variable("CONTAINER_ID", identity.id),
            variable("CONTAINER_NAMESPACE", identity.namespace),
        ];
        let child = Spawn::new(path)
            .args(self.args.iter().map(OsStr::new))
            .env_clear_set(env)
            .fd(3, or_ended(self.stdout).map_err(failed)?)
            .fd(4, or_ended(self.stderr).map_err(failed)?)
            .fd(5, says_ready)
            .spawn()
            .map_err(failed)?;
        let child = Ready(Some(child));
        match (wait_ready(&ready).map_err(failed)?, self.readiness) {
            (Said::Byte, _) | (Said::Closed, Readiness::Close) => Ok(child),
            (Said::Closed, Readiness::Byte) => Err(Error::LoggerReady {
                path: path.to_owned(),
                why: "ended or closed descriptor 5 before it was ready",
            }),
            (Said::Nothing, _) => Err(Error::LoggerReady {
                path: path.to_owned(),
                why: "was not ready in 30 s",
            }),
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            kill(child);
        }
    }
}

impl Logger {
    pub(crate) fn new(mut ready: Ready) -> Self {
        Self(ready.0.take())
    }

    /// Lets it end by itself for `grace`, then asks, then kills. Nobody must write to it any more.
    pub(crate) async fn end(mut self, grace: Duration) {
        if self.has_ended(grace).await {
            return;
        }
        // It may have ended by now.
        let _gone = self.0.as_ref().map(|child| child.kill(Signal::SIGTERM));
        if self.has_ended(TERM_LIMIT).await {
            return;
        }
        if let Some(child) = self.0.take() {
            let pid = child.pid().as_raw();
            tracing::warn!(pid, "killing a log binary that does not end");
            kill(child);
        }
    }

    /// Waits for its end, but not longer than `limit`.
    async fn has_ended(&mut self, limit: Duration) -> bool {
        let Some(child) = &mut self.0 else {
            return true;
        };
        // Without an answer it may have ended or not, which is asked below.
        let _elapsed = timeout(limit, ended(child)).await;
        // A status that cannot be had is that of one that has ended.
        !matches!(child.try_wait(), Ok(None))
    }
}

/// Waits until a process has ended; before Linux 5.3, which cannot tell, by looking now and then.
async fn ended(child: &mut Child) {
    let pidfd = sys::process::pidfd_open(child.pid());
    if let Ok(pidfd) = pidfd.and_then(|fd| watched_by_tokio(fd, Interest::READABLE)) {
        // Only the runtime's end is an error, and then nobody waits.
        let _shut_down = pidfd.readable().await;
        return;
    }
    while matches!(child.try_wait(), Ok(None)) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn kill(child: Child) {
    // It may have ended by itself.
    let _gone = child.kill(Signal::SIGKILL);
    child.release();
}

impl Drop for Logger {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            child.release();
        }
    }
}

/// A stream that nobody writes is a pipe at its end: binaries may poll it.
fn or_ended(fd: Option<OwnedFd>) -> io::Result<OwnedFd> {
    match fd {
        Some(fd) => Ok(fd),
        None => sys::pipe_cloexec().map(|(reader, _writer)| reader),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Byte,
    Closed,
    Nothing,
}

fn wait_ready(ready: &OwnedFd) -> io::Result<Said> {
    let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::from(READY_LIMIT_MS)) {
            Ok(0) => return Ok(Said::Nothing),
            Ok(_) => break,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut byte = [0];
    match nix::unistd::read(ready, &mut byte)? {
        0 => Ok(Said::Closed),
        _ => Ok(Said::Byte),
    }
}
