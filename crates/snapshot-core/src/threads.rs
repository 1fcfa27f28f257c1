//! Threads for calls that may block, so many at once: who waits for one waits with a limit, and so
//! does who waits for its call. It must not know what they do.
//!
//! ```text
//!  waits for a place --Limits::wait--> Unavailable, nothing was done
//!    `-> the call runs --Limits::wait--> it is slow: its place is given to others, it goes on
//!          `--Limits::run--> TimedOut is told, it goes on
//! ```

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinHandle,
    time::timeout,
};

use crate::{Error, Result};

/// Slow calls that hold up nobody. One more keeps its place: a disk on which so many hang is not
/// there, and threads cost memory.
pub(crate) const SLOW_MAX: usize = 128;

/// How long a request waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For its turn: a place, a name that another has, a thread.
    pub wait: Duration,
    /// For what it asked for, from its turn on.
    pub run: Duration,
}

/// So many threads.
#[derive(Clone, Debug)]
pub struct Threads {
    places: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    limits: Limits,
}

impl Threads {
    /// Threads that slow calls do not use up.
    #[must_use]
    pub fn new(threads_max: usize, limits: Limits) -> Self {
        Self::with(threads_max, SLOW_MAX, limits)
    }

    /// Threads for calls that are slow by nature: no more than these, whatever they do.
    #[must_use]
    pub fn few(threads_max: usize, limits: Limits) -> Self {
        Self::with(threads_max, 0, limits)
    }

    fn with(threads_max: usize, slow_max: usize, limits: Limits) -> Self {
        Self {
            places: Arc::new(Semaphore::new(threads_max)),
            slow: Arc::new(Semaphore::new(slow_max)),
            limits,
        }
    }

    /// How long a request waits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Runs `call` and gives what it returns. It goes on when nobody waits for it any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it was not begun, or ended without an answer;
    /// [`Error::TimedOut`] when it goes on.
    pub async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        self.run_and_go_on(|teller| {
            // When the client has left, nobody has to know.
            let _left = teller.send(call());
        })
        .await
    }

    /// As [`Threads::run`], for a call that has something to do after its answer.
    ///
    /// # Errors
    /// As [`Threads::run`].
    pub async fn run_and_go_on<T: Send + 'static>(
        &self,
        call: impl FnOnce(oneshot::Sender<T>) + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.places).acquire_owned();
        let Ok(place) = timeout(self.limits.wait, place).await else {
            return Err(Error::Unavailable(format!(
                "no thread was free within {} seconds: other requests hang; see the daemon's log, \
                 and try again later",
                self.limits.wait.as_secs_f32()
            )));
        };
        let place = place.map_err(|_closed| ending())?;
        let (teller, told) = oneshot::channel();
        let running = tokio::task::spawn_blocking(move || call(teller));
        // Not by who waits: it may leave.
        tokio::spawn(self.clone().watch(running, place));
        match timeout(self.limits.run, told).await {
            Ok(told) => told.map_err(|_ended| ending()),
            Err(_elapsed) => Err(Error::TimedOut(format!(
                "the request was not done within {} seconds; it goes on, and may still be done",
                self.limits.run.as_secs_f32()
            ))),
        }
    }

    async fn watch(self, mut running: JoinHandle<()>, place: OwnedSemaphorePermit) {
        if timeout(self.limits.wait, &mut running).await.is_ok() {
            return;
        }
        let held = match self.slow.try_acquire_owned() {
            Ok(slow) => {
                drop(place);
                slow
            }
            Err(_none) => place,
        };
        // A panic was reported when it happened.
        let _ended = running.await;
        drop(held);
    }
}

/// A thread that ends without an answer: release builds abort on a panic, and the runtime ends with
/// the daemon.
fn ending() -> Error {
    Error::Unavailable("the daemon is ending".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMITS: Limits = Limits {
        wait: Duration::from_millis(20),
        run: Duration::from_millis(60),
    };

    const LONG: Duration = Duration::from_secs(60);

    /// A call that lasts until the test lets go of what this gives.
    fn hang(threads: &Threads) -> (mpsc::Sender<()>, JoinHandle<Result<()>>) {
        let (hold, held) = mpsc::channel::<()>();
        let threads = threads.clone();
        let wait = move || {
            let _let_go = held.recv();
        };
        let call = tokio::spawn(async move { threads.run(wait).await });
        (hold, call)
    }

    async fn is_free_some_day(threads: &Threads) {
        let free = async {
            while let Err(error) = threads.run(|| ()).await {
                assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
            }
        };
        timeout(LONG, free).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_a_call_that_hangs_is_told_in_time() {
        let threads = Threads::new(1, LIMITS);
        let (hold, call) = hang(&threads);
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::TimedOut(_)), "{error:?}");
        drop(hold);
    }

    #[tokio::test]
    async fn calls_that_hang_take_no_place_even_when_nobody_waits_for_them() {
        let wait = LIMITS.wait;
        let threads = Threads::new(1, Limits { wait, run: LONG });
        let mut holds = Vec::new();
        for _ in 0..3 {
            let (hold, call) = hang(&threads);
            tokio::task::yield_now().await;
            call.abort();
            holds.push(hold);
        }
        is_free_some_day(&threads).await;
        drop(holds);
    }

    #[tokio::test]
    async fn few_threads_stay_few() {
        let wait = LIMITS.wait;
        let threads = Threads::few(1, Limits { wait, run: LONG });
        let (hold, call) = hang(&threads);
        while threads.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            let error = threads.run(|| ()).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        }
        drop(hold);
        call.await.unwrap().unwrap();
        is_free_some_day(&threads).await;
    }
}
