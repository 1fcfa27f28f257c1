//! What copies a process's streams for as long as it lives, and how it is told to end.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sys::pty::WindowSize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::input::InputCopy;
use crate::logger::{Logger, Ready};
use crate::output::{ENDED, MOVED, OutputCopy, Sink};
use crate::port::Port;

/// Copies the streams of one process.
///
/// Dropping it stops the copying and closes everything; log binaries run on until they have read
/// all.
#[derive(Debug)]
pub struct Copier {
    copies: JoinSet<()>,
    /// The write end that keeps stdin from ending when clients come and go.
    keep_alive: Mutex<Option<OwnedFd>>,
    master: Option<Arc<OwnedFd>>,
    asked: watch::Sender<u64>,
    told: Vec<watch::Receiver<u64>>,
    loggers: Vec<Logger>,
}

/// What [`Copier::drain`] has achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All the process wrote has left our pipes.
    All,
    /// A reader has not taken all by the deadline.
    Stalled,
}

/// What a copier is made of.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) input: Option<InputCopy>,
    pub(crate) keep_alive: Option<OwnedFd>,
    pub(crate) outputs: Vec<(Port, Sink)>,
    pub(crate) master: Option<Arc<OwnedFd>>,
}

impl Copier {
    pub(crate) fn start(parts: Parts, loggers: Vec<Ready>) -> Self {
        let mut copies = JoinSet::new();
        let (asked, _) = watch::channel(0);
        let mut told = Vec::with_capacity(parts.outputs.len());
        for (source, sink) in parts.outputs {
            let (tells, tell) = watch::channel(0);
            told.push(tell);
            let copy = OutputCopy {
                source: Arc::new(source),
                sink,
                asked: asked.subscribe(),
                told: tells,
            };
            copies.spawn(copy.run());
        }
        if let Some(input) = parts.input {
            copies.spawn(input.run());
        }
        Self {
            copies,
            keep_alive: Mutex::new(parts.keep_alive),
            master: parts.master,
            asked,
            told,
            loggers: loggers.into_iter().map(Logger::new).collect(),
        }
    }

    /// The client wants the process's standard input to end. What is already in the fifo is read
    /// first, and so is what other writers that hold it open still write. Idempotent.
    ///
    /// To a terminal in canonical mode its end-of-file character is written at the end.
    pub fn close_stdin(&self) {
        let mut keep_alive = self
            .keep_alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *keep_alive = None;
    }

    /// Tells the terminal its size; without a terminal nothing happens, as in containerd's shim.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        let Some(master) = &self.master else {
            return Ok(());
        };
        sys::pty::set_window_size(master, size).map_err(Error::system("resize the terminal"))
    }

    /// To be called when the process has ended: returns as soon as all it wrote has moved on, and
    /// at `deadline` at the latest. Copying goes on until [`Copier::close`], for slow readers and
    /// for processes that inherited the streams. Can be called again.
    pub async fn drain(&self, deadline: Instant) -> Drained {
        let mut generation = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            generation = *asked;
        });
        for told in &self.told {
            let mut told = told.clone();
            let moved = told.wait_for(|told| *told >= generation);
            // A stream that is gone has moved all it will.
            if timeout_at(deadline, moved).await.is_err() {
                return Drained::Stalled;
            }
        }
        Drained::All
    }

    /// To be called before [`Copier::close`], after [`Copier::drain`]: waits until clients have opened the
    /// fifos of streams that have ended with something in them, and until `deadline` at the latest.
    pub async fn opened(&self, deadline: Instant) -> Drained {
        for told in &self.told {
            let mut told = told.clone();
            if *told.borrow() == MOVED
                && timeout_at(deadline, told.wait_for(|told| *told == ENDED))
                    .await
                    .is_err()
            {
                return Drained::Stalled;
            }
        }
        Drained::All
    }

    /// Stops copying and closes everything; what readers have not taken is lost. A log binary may
    /// take `grace` to end by itself, then it gets SIGTERM, and SIGKILL 10 s later.
    pub async fn close(self, grace: Duration) {
        let Self {
            mut copies,
            keep_alive,
            master,
            loggers,
            ..
        } = self;
        copies.shutdown().await;
        drop((keep_alive, master));
        let mut ends: JoinSet<()> = loggers
            .into_iter()
            .map(|logger| logger.end(grace))
            .collect();
        while ends.join_next().await.is_some() {}
    }
}
