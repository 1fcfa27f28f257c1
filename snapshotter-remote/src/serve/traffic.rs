//! Whether a connection gets on with its answers: a client that takes a few bytes now and then, or a
//! disk that hangs, must not keep a place for ever. What comes in is bounded by hyper.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::measured::Measured;

/// Bytes that a client takes in the time of silence, at least, while there are as many.
const PACE_BYTES: u64 = 64 << 10;

/// What happens on one connection.
#[derive(Debug, Clone)]
pub(super) struct Traffic {
    state: Arc<State>,
    measured: Measured,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that the kernel took.
    written: AtomicU64,
    /// Answers that were asked for and not handed over to their end.
    running: AtomicUsize,
    /// Answers that were.
    ended: AtomicU64,
    /// The kernel takes no more.
    is_full: AtomicBool,
}

/// An answer that is made or sent; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Answering(Traffic);

impl Traffic {
    pub(super) fn new(measured: Measured) -> Self {
        Self {
            state: Arc::default(),
            measured,
        }
    }

    pub(super) fn begin(&self) -> Answering {
        self.state.running.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// Returns when something was to be sent for that long, or twice as long at most, and nearly
    /// nothing was.
    pub(super) async fn silence(&self, limit: Duration) {
        let mut last = self.look();
        loop {
            tokio::time::sleep(limit).await;
            let now = self.look();
            let is_stuck = last.owes
                && now.owes
                && now.ended == last.ended
                && now.written - last.written < PACE_BYTES;
            if is_stuck {
                self.measured.silent();
                return;
            }
            last = now;
        }
    }

    fn look(&self) -> Look {
        let state = &self.state;
        Look {
            owes: state.running.load(Ordering::Relaxed) > 0
                || state.is_full.load(Ordering::Relaxed),
            written: state.written.load(Ordering::Relaxed),
            ended: state.ended.load(Ordering::Relaxed),
        }
    }
}

/// What a look has seen.
#[derive(Debug, Clone, Copy)]
struct Look {
    owes: bool,
    written: u64,
    ended: u64,
}

impl Answering {
    pub(super) fn sends(&self, bytes: usize) {
        self.0.measured.sent(bytes);
    }

    pub(super) fn fails(&self) {
        self.0.measured.failed();
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state.running.fetch_sub(1, Ordering::Relaxed);
        self.0.state.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// A socket whose writes are told to [`Traffic`].
#[derive(Debug)]
pub(super) struct Watched<S> {
    socket: S,
    traffic: Traffic,
}

impl<S> Watched<S> {
    pub(super) fn new(socket: S, traffic: Traffic) -> Self {
        Self { socket, traffic }
    }

    fn note(&self, written: &Poll<io::Result<usize>>) {
        let state = &self.traffic.state;
        state.is_full.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = written {
            state.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
