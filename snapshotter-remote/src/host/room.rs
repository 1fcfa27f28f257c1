//! How much the cache takes of the host's disk, and when something has to go; it takes nothing away.
//!
//! ```text
//!            high                      low
//!  0 -----------|-----------------------|------> free
//!     bytes written wake who takes away, until low is reached
//! ```

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long somebody whose disk is full waits for who takes away.
const PATIENCE: Duration = Duration::from_secs(60);

/// When nothing more could go, it is tried again after that.
const PAUSE: Duration = Duration::from_secs(5);

/// How much more than was asked for goes when the disk is full, so that the next does not ask again.
const AT_LEAST_BYTES: u64 = 16 << 20;

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Above that, something goes.
    pub(super) high_bytes: u64,
    /// Until that is reached.
    pub(super) low_bytes: u64,
}

/// What the cache takes.
#[derive(Debug)]
pub(super) struct Room {
    /// None: what the disk has.
    limits: Option<Limits>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used_bytes: u64,
    /// What somebody waits for.
    asked_bytes: Option<u64>,
    /// Whether something went the last time.
    has_freed: bool,
    /// Before that it is not tried again for the limits' sake.
    not_before: Option<Instant>,
    is_ending: bool,
}

impl Room {
    /// With that much in it.
    pub(super) fn new(limits: Option<Limits>) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// So many bytes were written.
    pub(super) fn wrote(&self, bytes: u64) {
        let mut state = self.lock();
        state.used_bytes = state.used_bytes.saturating_add(bytes);
        if self.excess(&state).is_some() {
            self.changed.notify_all();
        }
    }

    /// Whether there is room for what nobody has asked for.
    pub(super) fn has_some(&self) -> bool {
        let limits = self.limits;
        limits.is_none_or(|limits| self.lock().used_bytes < limits.low_bytes)
    }

    /// The disk is full: waits until something was taken away, and says whether there was something.
    pub(super) fn make(&self, bytes: u64) -> bool {
        let mut state = self.lock();
        let wanted = bytes.max(AT_LEAST_BYTES);
        state.asked_bytes = state.asked_bytes.max(Some(wanted));
        let until = Instant::now() + PATIENCE;
        self.changed.notify_all();
        while state.asked_bytes.is_some() && !state.is_ending {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.has_freed && !state.is_ending
    }

    /// Waits until something has to go: how many bytes; none when it is time to end.
    pub(super) fn next(&self) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if state.is_ending {
                return None;
            }
            let now = Instant::now();
            if let Some(asked) = state.asked_bytes {
                return Some(asked);
            }
            let pause = state.not_before.map(|at| at.saturating_duration_since(now));
            let pause = pause.filter(|left| !left.is_zero());
            match (self.excess(&state), pause) {
                (Some(excess), None) => return Some(excess),
                (_, pause) => {
                    let limit = pause.unwrap_or(Duration::from_secs(3600));
                    let woken = self.changed.wait_timeout(state, limit);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// So much is used, as was found out: how many bytes have to go still.
    pub(super) fn measured(&self, used_bytes: u64) -> Option<u64> {
        let mut state = self.lock();
        state.used_bytes = used_bytes;
        state.asked_bytes.or_else(|| self.excess(&state))
    }

    /// So much went, and so much is left, if that could be found out; `wanted` is what was said to have to go.
    pub(super) fn freed(&self, wanted: u64, freed_bytes: u64, used_bytes: Option<u64>) {
        let mut state = self.lock();
        let left = state.used_bytes.saturating_sub(freed_bytes);
        state.used_bytes = used_bytes.unwrap_or(left);
        state.has_freed = freed_bytes > 0;
        if state.asked_bytes.is_some_and(|asked| asked <= wanted) {
            state.asked_bytes = None;
        }
        state.not_before = (freed_bytes < wanted).then(|| Instant::now() + PAUSE);
        self.changed.notify_all();
    }

    /// Whether it is time to end.
    pub(super) fn is_ending(&self) -> bool {
        self.lock().is_ending
    }

    /// Waits so long, and no longer than until it is time to end: whether it is.
    pub(super) fn is_ending_within(&self, limit: Duration) -> bool {
        let state = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(state, limit, |state| !state.is_ending);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_ending
    }

    /// Nobody waits any longer.
    pub(super) fn end(&self) {
        self.lock().is_ending = true;
        self.changed.notify_all();
    }

    /// How much is above the limit.
    fn excess(&self, state: &State) -> Option<u64> {
        let limits = self.limits?;
        let is_over = state.used_bytes > limits.high_bytes;
        is_over.then(|| state.used_bytes - limits.low_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_the_high_mark_what_is_above_the_low_one_goes() {
        let limits = Limits {
            high_bytes: 100,
            low_bytes: 80,
        };
        let room = Room::new(Some(limits));
        room.wrote(79);
        assert!(room.has_some());
        room.wrote(21);
        assert!(!room.has_some());
        room.wrote(1);
        assert_eq!(room.next(), Some(21));
        room.freed(21, 21, Some(80));
        room.wrote(25);
        assert_eq!(room.next(), Some(25));
        assert_eq!(room.measured(100), None, "a disk has gone meanwhile");
        room.wrote(6);
        assert_eq!(room.next(), Some(26));
        assert_eq!(room.measured(105), Some(25));
        room.freed(25, 3, None);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| room.next());
            room.end();
            assert_eq!(waits.join().unwrap(), None, "it is not tried at once again");
        });
    }

    #[test]
    fn who_has_a_full_disk_waits_until_something_went_or_could_not() {
        let room = Room::new(None);
        room.wrote(1 << 40);
        for (freed, expected) in [(1, true), (0, false)] {
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| room.make(5));
                let wanted = room.next().unwrap();
                assert_eq!(wanted, AT_LEAST_BYTES);
                room.freed(wanted, freed, Some(7));
                assert_eq!(waits.join().unwrap(), expected);
            });
        }
        assert!(room.has_some() && !room.is_ending_within(Duration::from_millis(1)));
        room.end();
        assert!(!room.make(1));
        assert!(room.is_ending_within(Duration::from_secs(3600)));
    }
}
