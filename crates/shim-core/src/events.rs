//! Sends events to containerd, in the order in which they happened, and keeps them while it is
//! away. One publisher per shim, one event under way at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use tokio::sync::Notify;

use crate::convert::events::{forward_request, topic};
use crate::request::Event;

/// Events kept while containerd is away; then the oldest go.
const QUEUE_MAX: usize = 4096;

/// How long containerd may take to accept one event.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses between attempts: short at first, since a restart takes a moment.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How often an event is offered that containerd answers with an error. As in Go's shim.
const REFUSALS_MAX: u32 = 5;

/// Takes events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    namespace: Arc<str>,
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    events: Mutex<Events>,
    filled: Notify,
    emptied: Notify,
    /// containerd may be back.
    back: Notify,
}

#[derive(Debug)]
struct Events {
    waiting: VecDeque<ForwardRequest>,
    dropped: u64,
    /// The first one is under way and must not be dropped.
    sending: bool,
}

impl Publisher {
    /// A publisher and the future that sends, to be run by the caller, which never ends. Without
    /// an address nothing is sent.
    pub(crate) fn new(
        namespace: &str,
        address: &str,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let queue = Arc::new(Queue {
            events: Mutex::new(Events {
                waiting: VecDeque::new(),
                dropped: 0,
                sending: false,
            }),
            filled: Notify::new(),
            emptied: Notify::new(),
            back: Notify::new(),
        });
        let publisher = Self {
            namespace: namespace.into(),
            queue: Arc::clone(&queue),
        };
        let path = address
            .strip_prefix("unix://")
            .unwrap_or(address)
            .to_owned();
        (publisher, send_all(queue, path))
    }

    /// Queues an event of a container; it happened now.
    pub(crate) fn publish(&self, container_id: &str, event: Event) {
        let request = forward_request(&self.namespace, container_id, event, SystemTime::now());
        self.queue.push(request);
    }

    /// containerd is heard of: an attempt now is worth more than one after a pause.
    pub(crate) fn try_now(&self) {
        self.queue.back.notify_waiters();
    }

    /// Waits until everything was sent, but not longer than `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let emptied = async {
            loop {
                let emptied = self.queue.emptied.notified();
                if self.queue.lock().waiting.is_empty() {
                    return;
                }
                emptied.await;
            }
        };
        if tokio::time::timeout(limit, emptied).await.is_err() {
            let events = self.queue.lock().waiting.len();
            tracing::warn!(events, "ending with events that containerd did not take");
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Events> {
        // No code panics while it holds the lock.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, request: ForwardRequest) {
        let mut events = self.lock();
        if events.waiting.len() >= QUEUE_MAX {
            let oldest = usize::from(events.sending);
            events.waiting.remove(oldest);
            events.dropped += 1;
            if events.dropped.is_power_of_two() {
                let dropped = events.dropped;
                tracing::warn!(
                    dropped,
                    "containerd is away for long, old events are dropped"
                );
            }
        }
        events.waiting.push_back(request);
        drop(events);
        self.filled.notify_one();
    }

    /// The oldest event, which stays in the queue until `sent`.
    async fn first(&self) -> ForwardRequest {
        loop {
            let filled = self.filled.notified();
            {
                let mut events = self.lock();
                if let Some(first) = events.waiting.front().cloned() {
                    events.sending = true;
                    return first;
                }
            }
            filled.await;
        }
    }

    fn sent(&self) {
        let mut events = self.lock();
        events.sending = false;
        events.waiting.pop_front();
        if events.waiting.is_empty() {
            // What a long absence needed is not kept for ever.
            events.waiting.shrink_to(16);
            drop(events);
            self.emptied.notify_waiters();
        }
    }
}

async fn send_all(queue: Arc<Queue>, path: String) {
    let mut client = None;
    loop {
        let request = queue.first().await;
        if !path.is_empty() {
            send(&queue, &mut client, &path, &request).await;
        }
        queue.sent();
    }
}

/// Offers one event until it is taken, or refused often enough.
async fn send(
    queue: &Queue,
    client: &mut Option<EventsClient>,
    path: &str,
    request: &ForwardRequest,
) {
    let (mut pause, mut refusals) = (PAUSE_MIN, 0);
    loop {
        match forward(client, path, request).await {
            Ok(()) => return,
            Err(Failure::Away(error)) => {
                tracing::debug!(%error, topic = topic(request), "containerd takes no events");
                *client = None;
            }
            Err(Failure::Refused(error)) => {
                refusals += 1;
                if refusals >= REFUSALS_MAX {
                    tracing::error!(%error, topic = topic(request), "containerd refused an event");
                    return;
                }
            }
        }
        // A pause that was cut short begins anew at the shortest.
        let heard_of = tokio::time::timeout(pause, queue.back.notified())
            .await
            .is_ok();
        pause = if heard_of {
            PAUSE_MIN
        } else {
            PAUSE_MAX.min(pause * 2)
        };
    }
}

enum Failure {
    /// It was not reached, or did not answer.
    Away(String),
    /// It answered with an error.
    Refused(String),
}

async fn forward(
    client: &mut Option<EventsClient>,
    path: &str,
    request: &ForwardRequest,
) -> Result<(), Failure> {
    let client = match client {
        Some(client) => client,
        // Not ttrpc's own connect: that one blocks when containerd's backlog is full.
        None => {
            let stream = tokio::net::UnixStream::connect(path)
                .await
                .map_err(|e| Failure::Away(e.to_string()))?;
            let socket = ttrpc::asynchronous::transport::Socket::new(stream);
            client.insert(EventsClient::new(ttrpc::asynchronous::Client::new(socket)))
        }
    };
    let context = ttrpc::context::with_duration(FORWARD_TIMEOUT);
    match client.forward(context, request).await {
        Ok(_empty) => Ok(()),
        Err(error @ ttrpc::Error::RpcStatus(_)) => Err(Failure::Refused(error.to_string())),
        Err(error) => Err(Failure::Away(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_absence_costs_the_oldest_events() {
        let (publisher, _sending) = Publisher::new("ns", "/nowhere");
        for _ in 0..QUEUE_MAX {
            publisher.publish("old", Event::Oom);
        }
        // One is under way; it stays first.
        let first = publisher.queue.first().await;
        publisher.publish("new", Event::Paused);
        let events = publisher.queue.lock();
        assert_eq!((events.waiting.len(), events.dropped), (QUEUE_MAX, 1));
        assert_eq!(events.waiting.front(), Some(&first));
        assert_eq!(events.waiting.back().map(topic), Some("/tasks/paused"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_does_not_wait_for_ever() {
        let (publisher, sending) = Publisher::new("ns", "/nowhere");
        let sending = tokio::spawn(sending);
        publisher.publish("c", Event::Oom);
        publisher.flush(Duration::from_secs(3)).await;
        assert_eq!(publisher.queue.lock().waiting.len(), 1);
        sending.abort();
    }

    #[tokio::test]
    async fn without_an_address_nothing_is_kept() {
        let (publisher, sending) = Publisher::new("ns", "");
        let sending = tokio::spawn(sending);
        publisher.publish("c", Event::Oom);
        publisher.flush(Duration::from_secs(3)).await;
        assert!(publisher.queue.lock().waiting.is_empty());
        sending.abort();
    }
}
