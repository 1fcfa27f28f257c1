//! What an answer carries: a line of text, or bytes of an object, a frame at a time. While one is sent,
//! the next is read; more than these two are never in memory.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use super::traffic::Answering;
use crate::store::Opened;

/// Bytes that are read and sent at once.
pub(super) const FRAME_BYTES: usize = 128 << 10;

/// An answer's contents, counted as one that runs until it is dropped.
#[derive(Debug)]
pub(super) struct Sent {
    source: Source,
    answering: Option<Answering>,
}

#[derive(Debug)]
enum Source {
    /// What is here, if it was not taken yet.
    Text(Bytes),
    File(Stretch),
}

/// Bytes of a file, one behind the other.
#[derive(Debug)]
pub(super) struct Stretch {
    object: Arc<Opened>,
    /// Where the next read begins.
    at: u64,
    /// Bytes that were not read yet.
    unread: u64,
    /// Bytes that were not sent yet.
    unsent: u64,
    next: Next,
    /// Places of those who read files.
    reads: Arc<Semaphore>,
}

enum Next {
    Here(Bytes),
    /// A place to read from there, so much.
    Place(Place, u64, usize),
    Read(JoinHandle<io::Result<Vec<u8>>>),
    End,
}

/// What comes to be one.
type Place = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send + Sync>>;

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here(_) => "Here",
            Self::Place(..) => "Place",
            Self::Read(_) => "Read",
            Self::End => "End",
        })
    }
}

impl Stretch {
    /// Reads the first frame of it, on a place that the caller has; blocks.
    pub(super) fn begin(
        object: Opened,
        at: u64,
        bytes: u64,
        reads: &Arc<Semaphore>,
    ) -> io::Result<Self> {
        let mut this = Self {
            object: Arc::new(object),
            at,
            unread: bytes,
            unsent: bytes,
            next: Next::End,
            reads: Arc::clone(reads),
        };
        if let Some((at, count)) = this.step() {
            this.next = Next::Here(this.object.read(at, count)?.into());
        }
        Ok(this)
    }

    /// Where the next frame is, and how long.
    fn step(&mut self) -> Option<(u64, usize)> {
        let count = usize::try_from(self.unread)
            .unwrap_or(usize::MAX)
            .min(FRAME_BYTES);
        let at = self.at;
        self.at += count as u64;
        self.unread -= count as u64;
        (count > 0).then_some((at, count))
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Next::Place(place, at, count) = &mut self.next {
            let (at, count) = (*at, *count);
            let place = ready!(place.as_mut().poll(context));
            self.next = self.read(at, count, place);
        }
        let bytes = match &mut self.next {
            Next::End | Next::Place(..) => return Poll::Ready(None),
            Next::Here(bytes) => std::mem::take(bytes),
            Next::Read(reading) => match ready!(Pin::new(reading).poll(context)) {
                Ok(Ok(bytes)) => bytes.into(),
                Ok(Err(error)) => return self.fail(error),
                Err(error) => return self.fail(io::Error::other(error)),
            },
        };
        self.unsent -= bytes.len() as u64;
        self.next = match self.step() {
            None => Next::End,
            Some((at, count)) => match Arc::clone(&self.reads).try_acquire_owned() {
                Ok(place) => self.read(at, count, Some(place)),
                Err(_taken) => {
                    let reads = Arc::clone(&self.reads);
                    let place = Box::pin(async { reads.acquire_owned().await.ok() });
                    Next::Place(place, at, count)
                }
            },
        };
        Poll::Ready(Some(Ok(bytes)))
    }

    /// The place is taken as long as the thread reads, whether its client is there or not.
    fn read(&self, at: u64, count: usize, place: Option<OwnedSemaphorePermit>) -> Next {
        let object = Arc::clone(&self.object);
        Next::Read(tokio::task::spawn_blocking(move || {
            let read = object.read(at, count);
            drop(place);
            read
        }))
    }

    fn fail(&mut self, error: io::Error) -> Poll<Option<io::Result<Bytes>>> {
        self.next = Next::End;
        Poll::Ready(Some(Err(error)))
    }
}

impl Sent {
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self {
            source: Source::Text(text.into()),
            answering: None,
        }
    }

    pub(super) fn stretch(stretch: Stretch) -> Self {
        Self {
            source: Source::File(stretch),
            answering: None,
        }
    }

    /// Counts as running from then on.
    pub(super) fn counted(self, answering: Answering) -> Self {
        Self {
            answering: Some(answering),
            ..self
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = match &mut self.source {
            Source::Text(text) if text.is_empty() => None,
            Source::Text(text) => Some(Ok(std::mem::take(text))),
            Source::File(stretch) => ready!(stretch.poll_next(context)),
        };
        if let (Some(answering), Some(next)) = (&mut self.answering, &next) {
            match next {
                Ok(bytes) => answering.sends(bytes.len()),
                Err(error) => {
                    tracing::error!(%error, "an object could not be read to its end");
                    answering.fails();
                }
            }
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_empty(),
            Source::File(stretch) => matches!(stretch.next, Next::End),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.source {
            Source::Text(text) => text.len() as u64,
            Source::File(stretch) => stretch.unsent,
        })
    }
}
