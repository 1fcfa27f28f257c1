//! Accepted connections as a stream, so many at once and no more; one on which nobody asks anything
//! is closed after a while. An error of accept(2) is waited out and never ends it.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::{codegen::tokio_stream::Stream, transport::server::Connected};

/// A full table of descriptors stays full for a while; asking at once again would burn a core.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is refused again and again fills no log.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What connections come from.
pub(super) trait Accept: Unpin {
    type Connection: Unpin;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Self::Connection>>;

    /// Says a last word if there is room for it at once, which is so on a new connection.
    fn say(connection: &Self::Connection, words: &[u8]) -> io::Result<usize>;
}

/// How many connections there may be, what one more is told, and how long one may be silent.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) connections_max: usize,
    pub(super) refusal: &'static [u8],
    pub(super) silence: Duration,
}

/// To a client of gRPC, which tries again later then: empty SETTINGS, with which each side begins
/// (RFC 9113, 3.4), and GOAWAY (6.8) with ENHANCE_YOUR_CALM, so that no request was looked at.
pub(super) const REFUSE_HTTP2: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x25\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo many connections are open";

/// To a client of HTTP/1.1.
pub(super) const REFUSE_HTTP1: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";

impl Accept for UnixListener {
    type Connection = UnixStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        Self::poll_accept(self, context).map_ok(|(connection, _)| connection)
    }

    fn say(connection: &UnixStream, words: &[u8]) -> io::Result<usize> {
        connection.try_write(words)
    }
}

impl Accept for TcpListener {
    type Connection = TcpStream;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        Self::poll_accept(self, context).map_ok(|(connection, _)| connection)
    }

    fn say(connection: &TcpStream, words: &[u8]) -> io::Result<usize> {
        connection.try_write(words)
    }
}

/// The connections of one listener.
pub(super) struct Incoming<L> {
    listener: L,
    places: Arc<Semaphore>,
    bound: Bound,
    told: Option<Instant>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<L: Accept> Incoming<L> {
    pub(super) fn new(listener: L, bound: Bound) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(bound.connections_max)),
            bound,
            told: None,
            pause: None,
        }
    }

    fn refuse(&mut self, connection: &L::Connection) {
        // Who does not hear it sees that it was closed.
        let _said = L::say(connection, self.bound.refusal);
        if self.told.is_none_or(|told| told.elapsed() > TOLD_EVERY) {
            let connections_max = self.bound.connections_max;
            tracing::warn!(
                connections_max,
                "connections are refused: too many are open"
            );
            self.told = Some(Instant::now());
        }
    }
}

impl<L: Accept> Stream for Incoming<L> {
    type Item = io::Result<Counted<L::Connection>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(context)) {
                Ok(connection) => match Arc::clone(&self.places).try_acquire_owned() {
                    Ok(place) => {
                        return Poll::Ready(Some(Ok(Counted {
                            connection,
                            calls: Calls::default(),
                            silence: Silence::new(self.bound.silence),
                            _place: place,
                        })));
                    }
                    Err(_full) => self.refuse(&connection),
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }
}

/// A connection, and its place until it is closed.
pub(super) struct Counted<C> {
    connection: C,
    calls: Calls,
    silence: Silence,
    _place: OwnedSemaphorePermit,
}

/// The requests that run on one connection; each has it among its extensions.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(Arc<AtomicUsize>);

/// One of them.
#[derive(Debug)]
pub(super) struct Call(Calls);

impl Calls {
    pub(super) fn begin(&self) -> Call {
        self.0.fetch_add(1, Ordering::Relaxed);
        Call(self.clone())
    }

    fn is_none(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long nothing has come.
struct Silence {
    limit: Duration,
    since: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl Silence {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(limit)),
        }
    }

    fn is_broken(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when it has been too long and nobody waits for an answer.
    fn poll_too_long(&mut self, calls: &Calls, context: &mut Context<'_>) -> Poll<()> {
        while self.alarm.as_mut().poll(context).is_ready() {
            let since = if calls.is_none() {
                self.since
            } else {
                Instant::now()
            };
            if since.elapsed() >= self.limit {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset((since + self.limit).into());
        }
        Poll::Pending
    }
}

impl<C> Connected for Counted<C> {
    type ConnectInfo = Calls;

    fn connect_info(&self) -> Calls {
        self.calls.clone()
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = Pin::new(&mut this.connection).poll_read(context, buffer);
        if read.is_ready() {
            this.silence.is_broken();
            return read;
        }
        // As if the other side had closed it.
        this.silence.poll_too_long(&this.calls, context).map(Ok)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_whole_frames() {
        let mut rest = REFUSE_HTTP2;
        let mut kinds = Vec::new();
        while let [high, middle, low, kind, _flags, _, _, _, _, after @ ..] = rest {
            let length = u32::from_be_bytes([0, *high, *middle, *low]);
            kinds.push((*kind, length));
            rest = &after[usize::try_from(length).unwrap()..];
        }
        assert_eq!((kinds, rest), (vec![(0x4, 0), (0x7, 37)], &[][..]));
    }
}
