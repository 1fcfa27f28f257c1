//! A request's message is read to its end before it takes a place, within a time and within
//! memory: what a client does not send holds up nobody else. It must not look into messages.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body::Body as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{
    Status,
    body::Body,
    codegen::{Bytes, http},
};

type Request = http::Request<Body>;

/// Clients send a message at once with its header.
const LIMIT: Duration = Duration::from_secs(10);

/// A service may take less. gRPC puts five bytes before a message.
const MESSAGE_BYTES_MAX: usize = (4 << 20) + 5;

/// Bytes of the messages that are not whole or wait for a place, of one service. containerd's have
/// some hundred.
const BYTES_MAX: usize = 64 << 20;

/// How the messages of one service are read. No service takes a stream of them.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    limit: Duration,
    room: Arc<Semaphore>,
}

/// A request whose message is here.
#[derive(Debug)]
pub(super) struct Arrived<'a> {
    request: Request,
    _room: SemaphorePermit<'a>,
}

impl Arrival {
    pub(super) fn new() -> Self {
        Self::with(LIMIT, BYTES_MAX)
    }

    fn with(limit: Duration, bytes_max: usize) -> Self {
        Self {
            limit,
            room: Arc::new(Semaphore::new(bytes_max)),
        }
    }

    /// Reads a request to its end.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` for one that does not end in time, `RESOURCE_EXHAUSTED` for too much of
    /// one or of all, `CANCELLED` when the client has gone.
    pub(super) async fn whole(&self, request: Request) -> Result<Arrived<'_>, Status> {
        let (head, body) = request.into_parts();
        let read = tokio::time::timeout(self.limit, self.read(body)).await;
        let (message, room) = read.map_err(|_elapsed| {
            Status::deadline_exceeded(format!(
                "the message of the request was not whole after {} seconds",
                self.limit.as_secs()
            ))
        })??;
        Ok(Arrived {
            request: Request::from_parts(head, Body::new(message)),
            _room: room,
        })
    }

    async fn read(&self, body: Body) -> Result<(Message, SemaphorePermit<'_>), Status> {
        let mut body = pin!(body);
        let mut bytes = Vec::new();
        let mut room = self.take(0)?;
        while let Some(frame) =
            std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await
        {
            // Frames of other kinds carry nothing that a service asks for.
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > MESSAGE_BYTES_MAX {
                return Err(Status::resource_exhausted(format!(
                    "a message has at most {MESSAGE_BYTES_MAX} bytes"
                )));
            }
            room.merge(self.take(data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok((Message(Some(bytes.into())), room))
    }

    fn take(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Status> {
        let taken = u32::try_from(bytes).map(|bytes| self.room.try_acquire_many(bytes));
        taken.ok().and_then(Result::ok).ok_or_else(|| {
            Status::resource_exhausted("too many requests wait already; try again later")
        })
    }
}

impl Arrived<'_> {
    /// Its message counts as waiting no more.
    pub(super) fn into_request(self) -> Request {
        self.request
    }
}

/// A body that is here.
struct Message(Option<Bytes>);

impl http_body::Body for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|data| Ok(http_body::Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    /// Data, and then an end, or nothing more.
    struct Sent {
        data: Vec<&'static [u8]>,
        ends: bool,
    }

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
            match self.data.pop() {
                Some(data) => {
                    Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(data)))))
                }
                None if self.ends => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn request(data: &[&'static [u8]], ends: bool) -> Request {
        let data = data.iter().rev().copied().collect();
        Request::new(Body::new(Sent { data, ends }))
    }

    async fn refused(arrival: &Arrival, request: Request) -> Code {
        arrival.whole(request).await.unwrap_err().code()
    }

    #[tokio::test]
    async fn a_message_in_parts_arrives_as_one() {
        let arrival = Arrival::with(Duration::ZERO, 16);
        let arrived = arrival.whole(request(&[b"ab", b"", b"c"], true)).await;
        let mut body = arrived.unwrap().into_request().into_body();
        let mut next = || {
            let mut context = Context::from_waker(std::task::Waker::noop());
            match Pin::new(&mut body).poll_frame(&mut context) {
                Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
                Poll::Pending => panic!("it is here"),
            }
        };
        assert_eq!(next().as_deref(), Some(&b"abc"[..]));
        assert_eq!(next(), None);
    }

    #[tokio::test]
    async fn a_message_that_does_not_end_is_given_up_and_its_room_with_it() {
        let arrival = Arrival::with(Duration::ZERO, 2);
        for _ in 0..3 {
            let code = refused(&arrival, request(&[b"ab"], false)).await;
            assert_eq!(code, Code::DeadlineExceeded);
        }
        assert!(arrival.whole(request(&[b"ab"], true)).await.is_ok());
    }

    #[tokio::test]
    async fn messages_are_bounded_each_and_all_together() {
        const HALF: &[u8] = &[0; MESSAGE_BYTES_MAX / 2 + 1];
        let arrival = Arrival::with(Duration::ZERO, BYTES_MAX);
        let code = refused(&arrival, request(&[HALF, HALF], true)).await;
        assert_eq!(code, Code::ResourceExhausted);

        let arrival = Arrival::with(Duration::ZERO, 3);
        let waiting = arrival.whole(request(&[b"ab"], true)).await.unwrap();
        let code = refused(&arrival, request(&[b"cd"], true)).await;
        assert_eq!(code, Code::ResourceExhausted);
        waiting.into_request();
        assert!(arrival.whole(request(&[b"cd"], true)).await.is_ok());
    }
}
