//! A process's streams as the shim holds them: opened before it exists, copied while it lives,
//! drained after its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use stdio::{Copier, Drained, Ends, Identity, Mode, Owner, Request, Streams, Uri, WindowSize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::request::Stdio;
use crate::runtime::ProcessIo;
use crate::{Code, Options, ShimError};

/// What readers may leave untaken after the end of a process, counted from that end (Go's shim
/// waits as long).
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What a log binary may take to end by itself.
const LOGGER_GRACE: Duration = Duration::from_secs(10);

/// Opens the places a client named and gives the process's ends. Blocking.
pub(crate) fn open(
    stdio: &Stdio,
    identity: Identity<'_>,
    options: &Options,
) -> Result<(Streams, ProcessIo), ShimError> {
    let refused = |e: stdio::Error| ShimError::caused(Code::InvalidArgument, &e);
    let parse = |uri: &str| Uri::parse(uri).map_err(refused);
    let mode = if stdio.terminal {
        Mode::Terminal
    } else {
        Mode::Pipes(Owner {
            uid: options.io_uid,
            gid: options.io_gid,
        })
    };
    let request = Request {
        stdin: &parse(&stdio.stdin)?,
        stdout: &parse(&stdio.stdout)?,
        stderr: &parse(&stdio.stderr)?,
        mode,
        identity,
    };
    let (streams, ends) =
        Streams::open(&request).map_err(|e| ShimError::caused(Code::Internal, &e))?;
    let io = match ends {
        Ends::Pipes {
            stdin,
            stdout,
            stderr,
        } => ProcessIo::Streams {
            stdin,
            stdout,
            stderr,
        },
        Ends::Terminal => ProcessIo::Terminal,
    };
    Ok((streams, io))
}

/// The streams of one process. Wishes that come before copying begins are kept until then.
#[derive(Debug)]
pub(crate) struct Io {
    copier: Option<Arc<Copier>>,
    size: Option<WindowSize>,
    stdin_closed: bool,
    /// Since the process has ended, with the time by which its output is to be taken.
    draining: Option<(JoinHandle<Drained>, Instant)>,
}

impl Io {
    /// Nothing is copied yet.
    pub(crate) fn new() -> Self {
        Self {
            copier: None,
            size: None,
            stdin_closed: false,
            draining: None,
        }
    }

    /// Starts copying.
    pub(crate) fn copy(
        &mut self,
        streams: Streams,
        terminal: Option<OwnedFd>,
    ) -> Result<(), ShimError> {
        let copier = streams
            .copy(terminal)
            .map_err(|e| ShimError::caused(Code::Internal, &e))?;
        if let Some(size) = self.size {
            // The wish was accepted; that the terminal refuses it now is no reason to fail.
            if let Err(error) = copier.resize(size) {
                tracing::debug!(%error, "a terminal refused its size");
            }
        }
        if self.stdin_closed {
            copier.close_stdin();
        }
        self.copier = Some(Arc::new(copier));
        Ok(())
    }

    /// Tells the terminal its size.
    pub(crate) fn resize(&mut self, size: WindowSize) -> Result<(), ShimError> {
        self.size = Some(size);
        match &self.copier {
            Some(copier) => copier
                .resize(size)
                .map_err(|e| ShimError::caused(Code::Internal, &e)),
            None => Ok(()),
        }
    }

    /// Ends the process's standard input.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_closed = true;
        if let Some(copier) = &self.copier {
            copier.close_stdin();
        }
    }

    /// The process has ended: what it wrote moves on, and its streams end when that is done.
    pub(crate) fn process_ended(&mut self) {
        let Some(copier) = self.copier.as_ref().filter(|_| self.draining.is_none()) else {
            return;
        };
        let copier = Arc::clone(copier);
        let deadline = Instant::now() + DRAIN_MAX;
        let draining = tokio::spawn(async move { copier.drain(deadline).await });
        self.draining = Some((draining, deadline));
    }

    /// Waits until all output was taken or the time for it is over, and closes everything. Who deletes a
    /// process at once may not have opened its fifos yet.
    pub(crate) async fn finish(mut self) {
        // A process that is killed by its deletion has its time from now on.
        self.process_ended();
        if let (Some((draining, deadline)), Some(copier)) = (self.draining, &self.copier) {
            let drained = draining.await;
            let opened = copier.opened(deadline).await;
            if !matches!(drained, Ok(Drained::All)) || opened == Drained::Stalled {
                tracing::warn!("output was not taken in time and is lost");
            }
        }
        // The task that drained has let go of it.
        if let Some(copier) = self.copier.and_then(Arc::into_inner) {
            copier.close(LOGGER_GRACE).await;
        }
    }
}
