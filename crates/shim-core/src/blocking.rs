//! Where blocking calls run: each on a thread of its own, named for what it does, beside the one
//! that serves. What a container's calls may take is bounded, so that one whose calls hang holds up
//! nobody else.
//!
//! ```text
//!   Client ── turn: 16 a container ──> place: 4 a shim ──> thread ── hangs: gives its place away
//!   Urgent ── turn:  4 a container ──────────────────────> thread
//!   Own ─────────────────────────────────────────────────> thread
//! ```
//! While a call of a container hangs, its other calls take no place. So the threads of a shim are
//! few as long as nothing hangs, and at most 20 for each container whatever its clients ask, beside
//! the two or three that the end of its init needs.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use crate::{Code, ShimError};

/// Calls that run at once when none hangs.
const PLACES: usize = 4;

/// A call that takes longer hangs: it gives its place to the next one and goes on beside it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Calls of one container that have begun and not ended.
const CALLS_MAX: usize = 16;

/// The same for those that must get through when the others hang.
const URGENT_CALLS_MAX: usize = 4;

/// How long a call waits for its turn without any other having ended, before it is refused; less
/// than any client's limit.
const TURN_MAX: Duration = Duration::from_secs(5);

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A client has asked for it.
    Client,
    /// A client has asked for it, and it must get through when everything else hangs.
    Urgent,
    /// The shim itself has to do it: never refused, because it is never much.
    Own,
}

/// Hands blocking calls of one container to threads.
#[derive(Debug, Clone)]
pub(crate) struct Blocking {
    /// Of the whole shim.
    places: Arc<Semaphore>,
    container: Arc<Calls>,
}

/// What one container has under way.
#[derive(Debug)]
struct Calls {
    usual: Arc<Turns>,
    urgent: Arc<Turns>,
    /// How many hang.
    hanging: AtomicUsize,
}

/// As many calls as may be under way, and who waits to be one of them.
#[derive(Debug)]
struct Turns {
    max: usize,
    free: Arc<Semaphore>,
    /// How many have ended, ever.
    ended: AtomicUsize,
}

/// Held by a call until its end.
struct Turn {
    turns: Arc<Turns>,
    _permit: OwnedSemaphorePermit,
}

/// Counts as a hanging call while it lives.
struct Hanging(Arc<Calls>);

impl Blocking {
    pub(crate) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES)),
            container: Calls::none(),
        }
    }

    /// For the calls of another container.
    pub(crate) fn for_container(&self) -> Self {
        Self {
            places: Arc::clone(&self.places),
            container: Calls::none(),
        }
    }

    /// Runs a call on a thread of that name. Dropping the future does not end a call that has begun.
    /// Refused with [`Code::Unavailable`] when too many of the container hang.
    pub(crate) fn run<T, F>(
        &self,
        kind: Kind,
        name: &'static str,
        call: F,
    ) -> impl Future<Output = Result<T, ShimError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ShimError> + Send + 'static,
    {
        let this = self.clone();
        async move {
            let turn = match kind {
                Kind::Client => Some(this.container.usual.take(name).await?),
                Kind::Urgent => Some(this.container.urgent.take(name).await?),
                Kind::Own => None,
            };
            let place = this.place(kind).await;
            let running = beside(name, move || {
                let result = call();
                drop(turn);
                result
            })?;
            this.follow(name, place, running).await
        }
    }

    /// A place, unless the container has a call that hangs. Whoever has one gives it away soon.
    async fn place(&self, kind: Kind) -> Option<OwnedSemaphorePermit> {
        if kind != Kind::Client || self.container.hang() {
            return None;
        }
        let place = Arc::clone(&self.places).acquire_owned().await;
        place.ok().filter(|_| !self.container.hang())
    }

    async fn follow<T>(
        &self,
        name: &str,
        place: Option<OwnedSemaphorePermit>,
        mut running: oneshot::Receiver<Result<T, ShimError>>,
    ) -> Result<T, ShimError> {
        let ended = match timeout(PATIENCE, &mut running).await {
            Ok(ended) => ended,
            Err(_elapsed) => {
                let _hanging = Hanging::new(&self.container);
                drop(place);
                running.await
            }
        };
        // A release build aborts on panic; this is for tests.
        ended.unwrap_or_else(|_died| Err(ShimError::failed(name, &"it panicked")))
    }
}

impl Calls {
    fn none() -> Arc<Self> {
        Arc::new(Self {
            usual: Turns::new(CALLS_MAX),
            urgent: Turns::new(URGENT_CALLS_MAX),
            hanging: AtomicUsize::new(0),
        })
    }

    /// Whether one hangs.
    fn hang(&self) -> bool {
        self.hanging.load(Ordering::Relaxed) > 0
    }
}

impl Turns {
    fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            free: Arc::new(Semaphore::new(max)),
            ended: AtomicUsize::new(0),
        })
    }

    /// Waits as long as calls come to an end.
    async fn take(self: &Arc<Self>, name: &str) -> Result<Turn, ShimError> {
        let mut free = pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            let ended_before = self.ended.load(Ordering::Relaxed);
            match timeout(TURN_MAX, &mut free).await {
                Ok(Ok(permit)) => {
                    return Ok(Turn {
                        turns: Arc::clone(self),
                        _permit: permit,
                    });
                }
                // Nobody closes it.
                Ok(Err(closed)) => return Err(ShimError::failed(name, &closed)),
                Err(_elapsed) if self.ended.load(Ordering::Relaxed) == ended_before => {
                    return Err(self.refusal(name));
                }
                Err(_elapsed) => {}
            }
        }
    }

    fn refusal(&self, name: &str) -> ShimError {
        let (max, seconds) = (self.max, TURN_MAX.as_secs());
        let message = format!(
            "{name}: {max} calls to this container hang, and none has ended for {seconds} s"
        );
        ShimError::new(Code::Unavailable, message)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Hanging {
    fn new(calls: &Arc<Calls>) -> Self {
        calls.hanging.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(calls))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `call` on a thread of that name, which nobody need wait for. Dropping what comes back does
/// not end it.
pub(crate) fn beside<T: Send + 'static>(
    name: &'static str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, ShimError> {
    let (sender, running) = oneshot::channel();
    // Whoever asked may wait no longer.
    let run = move || drop(sender.send(call()));
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|e| ShimError::new(Code::Unavailable, format!("{name}: start a thread: {e}")))?;
    Ok(running)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::sync::{Mutex, PoisonError};

    use tokio::task::JoinHandle;

    use super::*;

    /// Calls that hang until the sender is dropped.
    fn hang(
        blocking: &Blocking,
        count: usize,
    ) -> (Sender<()>, Vec<JoinHandle<Result<(), ShimError>>>) {
        let (release, hang) = channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let call = |_| {
            let hang = Arc::clone(&hang);
            let call = move || {
                let released = hang.lock().unwrap_or_else(PoisonError::into_inner).recv();
                assert!(released.is_err());
                Ok(())
            };
            tokio::spawn(blocking.run(Kind::Client, "hang", call))
        };
        (release, (0..count).map(call).collect())
    }

    #[tokio::test]
    async fn calls_of_a_container_that_hangs_hold_up_no_other() {
        let one = Blocking::new();
        let other = one.for_container();
        let (release, hanging) = hang(&one, CALLS_MAX);
        tokio::task::yield_now().await;
        assert_eq!(other.run(Kind::Client, "quick", || Ok(7)).await, Ok(7));
        assert_eq!(one.run(Kind::Urgent, "quick", || Ok(8)).await, Ok(8));
        assert_eq!(one.run(Kind::Own, "quick", || Ok(9)).await, Ok(9));
        drop(release);
        for call in hanging {
            call.await.unwrap().unwrap();
        }
        assert!(!one.container.hang());
    }

    #[tokio::test(start_paused = true)]
    async fn more_calls_than_may_hang_are_refused_until_one_has_ended() {
        let calls = Calls::none();
        let turn = async || calls.usual.take("stats").await;
        let mut turns = Vec::new();
        for _ in 0..CALLS_MAX {
            turns.push(turn().await.unwrap());
        }
        let refused = turn().await.map(drop).unwrap_err();
        let expected = "stats: 16 calls to this container hang, and none has ended for 5 s";
        assert_eq!(
            (refused.kind, &*refused.message),
            (Code::Unavailable, expected)
        );
        calls.urgent.take("kill").await.unwrap();
        turns.pop();
        turn().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_refused_as_long_as_calls_end() {
        let calls = Calls::none();
        let wait = || {
            let calls = Arc::clone(&calls);
            async move { calls.usual.take("stats").await }
        };
        let mut turns = Vec::new();
        for _ in 0..CALLS_MAX {
            turns.push(wait().await.unwrap());
        }
        let waiting: Vec<_> = (0..CALLS_MAX).map(|_| tokio::spawn(wait())).collect();
        for waiting in waiting {
            tokio::time::sleep(TURN_MAX - Duration::from_millis(1)).await;
            turns.pop();
            turns.insert(0, waiting.await.unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn a_thread_is_named_for_its_call() {
        let name = || Ok(std::thread::current().name().map(str::to_owned));
        let name = Blocking::new()
            .run(Kind::Client, "update", name)
            .await
            .unwrap();
        assert_eq!(name.as_deref(), Some("update"));
    }
}
