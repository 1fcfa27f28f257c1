//! What an answer carries: a line of text, or bytes of an object, a frame at a time. While one is sent,
//! the next is read; more than these two are never in memory.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::task::JoinHandle;

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
}

#[derive(Debug)]
enum Next {
    Here(Bytes),
    Read(JoinHandle<io::Result<Vec<u8>>>),
    End,
}

impl Stretch {
    /// Reads the first frame of it; blocks.
    pub(super) fn begin(object: Opened, at: u64, bytes: u64) -> io::Result<Self> {
        let mut this = Self {
            object: Arc::new(object),
            at,
            unread: bytes,
            unsent: bytes,
            next: Next::End,
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
        let bytes = match &mut self.next {
            Next::End => return Poll::Ready(None),
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
            Some((at, count)) => {
                let object = Arc::clone(&self.object);
                Next::Read(tokio::task::spawn_blocking(move || object.read(at, count)))
            }
        };
        Poll::Ready(Some(Ok(bytes)))
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
