//! Blobs that are watched become whole by and by, without anybody reading them: slowly, so that who does goes first.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// When a store has failed, it is left alone for so long.
const AGAIN: Duration = Duration::from_secs(10);

/// What is to be done, and when.
#[derive(Debug)]
pub(super) struct Queue<T> {
    due: Mutex<Due<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Due<T> {
    all: VecDeque<(Instant, T)>,
    is_ending: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let all = VecDeque::new();
        Self {
            due: Mutex::new(Due {
                all,
                is_ending: false,
            }),
            changed: Condvar::new(),
        }
    }
}

/// How fast something is fetched or read.
#[derive(Debug)]
pub(in crate::host) struct Pace {
    bytes_per_second: u64,
    next: Instant,
}

impl<T> Queue<T> {
    /// From then on it may be done.
    pub(super) fn push(&self, at: Instant, one: T) {
        self.lock().all.push_back((at, one));
        self.changed.notify_all();
    }

    /// What is such is due now.
    pub(super) fn hurry(&self, is: impl Fn(&T) -> bool) {
        let now = Instant::now();
        let mut due = self.lock();
        for (at, _) in due.all.iter_mut().filter(|(_, one)| is(one)) {
            *at = now;
        }
        drop(due);
        self.changed.notify_all();
    }

    /// Tried again, a while later.
    pub(super) fn again(&self, one: T) {
        self.push(Instant::now() + AGAIN, one);
    }

    /// The next, when it is time for it; none when it is time to end.
    pub(super) fn next(&self) -> Option<T> {
        let mut due = self.lock();
        loop {
            if due.is_ending {
                return None;
            }
            let now = Instant::now();
            let soonest = due.all.iter().enumerate();
            let soonest = soonest.min_by_key(|(_, (at, _))| *at);
            let soonest = soonest.map(|(index, (at, _))| (index, *at));
            due = match soonest {
                Some((index, at)) if at <= now => {
                    return due.all.remove(index).map(|(_, one)| one);
                }
                Some((_, at)) => self.wait(due, at - now),
                None => self.wait(due, Duration::from_secs(3600)),
            };
        }
    }

    /// Whether there is time to go on at `pace`, which it waits for; not when it is time to end.
    pub(super) fn keep(&self, pace: &Pace) -> bool {
        let mut due = self.lock();
        loop {
            let left = pace.next.saturating_duration_since(Instant::now());
            if due.is_ending || left.is_zero() {
                return !due.is_ending;
            }
            due = self.wait(due, left);
        }
    }

    /// Nobody waits any longer.
    pub(super) fn end(&self) {
        self.lock().is_ending = true;
        self.changed.notify_all();
    }

    fn wait<'a>(&self, due: MutexGuard<'a, Due<T>>, limit: Duration) -> MutexGuard<'a, Due<T>> {
        let woken = self.changed.wait_timeout(due, limit);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Due<T>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace {
    /// From now on.
    pub(in crate::host) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            next: Instant::now(),
        }
    }

    /// When it may go on.
    pub(in crate::host) fn at(&self) -> Instant {
        self.next
    }

    /// How long it has to wait still, if it has.
    pub(in crate::host) fn left(&self) -> Option<Duration> {
        let left = self.next.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// So much was fetched: what follows has to wait for that.
    pub(in crate::host) fn took(&mut self, bytes: u64) {
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_second;
        self.next = self.next.max(Instant::now()) + Duration::from_micros(micros);
    }
}

#[cfg(test)]
mod tests {
    use sys::FileId;

    use super::*;

    fn blob(inode: u64) -> FileId {
        FileId { device: 1, inode }
    }

    #[test]
    fn what_is_due_first_comes_first_and_nothing_comes_after_the_end() {
        let queue = Queue::default();
        let now = Instant::now();
        queue.push(now + Duration::from_secs(3600), blob(1));
        queue.push(now, blob(2));
        queue.push(now.checked_sub(Duration::from_millis(1)).unwrap(), blob(3));
        assert_eq!(queue.next(), Some(blob(3)));
        assert_eq!(queue.next(), Some(blob(2)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| queue.next());
            queue.end();
            assert_eq!(waits.join().unwrap(), None);
        });
        let mut pace = Pace::new(1 << 20);
        pace.took(1 << 30);
        assert!(!queue.keep(&pace));
    }

    #[test]
    fn a_pace_is_kept() {
        let queue = Queue::<()>::default();
        let begun = Instant::now();
        let mut pace = Pace::new(1 << 20);
        for _ in 0..3 {
            assert!(queue.keep(&pace));
            pace.took(32 << 10);
        }
        assert!(queue.keep(&pace));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(90), "{took:?}");
    }
}
