//! Who may work on which snapshot, by name; must not know what they do.
//!
//! An operation asks for all names it needs at once and holds none while it waits, so no two can
//! wait for each other. Who may block waits on the thread; a request waits before it has one, as
//! many that want the same name would hold all of them. Both wait with a limit: who has a name may
//! hang.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{Error, Key, Result};

#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Mutex<Held>,
    given_back: Condvar,
    /// The same, for those who wait without a thread.
    told: Notify,
}

#[derive(Debug, Default)]
struct Held {
    names: HashMap<Key, Use>,
    waiting: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Changed,
    StoodOn { times: usize },
}

/// Names that are held until this is dropped.
#[derive(Debug)]
pub struct Names {
    locks: Arc<Locks>,
    wanted: Wanted,
}

#[derive(Debug)]
struct Wanted {
    changed: Vec<Key>,
    stood_on: Option<Key>,
}

impl Locks {
    /// Waits until nobody works on `changed`, and nobody changes `stood_on`. Blocks.
    ///
    /// # Errors
    /// [`Error::Unavailable`] names one that was not given back in time.
    pub(crate) fn take(
        self: &Arc<Self>,
        changed: &[&Key],
        stood_on: Option<&Key>,
        limit: Duration,
    ) -> Result<Names> {
        let wanted = Wanted::new(changed, stood_on);
        let end = Instant::now() + limit;
        let mut held = self.lock();
        while let Some(taken) = held.not_free(&wanted) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(not_given_back(taken, limit));
            }
            held.waiting += 1;
            let woken = self.given_back.wait_timeout(held, left);
            held = woken.unwrap_or_else(PoisonError::into_inner).0;
            held.waiting -= 1;
        }
        held.take(&wanted);
        drop(held);
        Ok(Names {
            locks: Arc::clone(self),
            wanted,
        })
    }

    /// As [`Locks::take`], and holds no thread while it waits.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        changed: &[&Key],
        stood_on: Option<&Key>,
        limit: Duration,
    ) -> Result<Names> {
        let wanted = Wanted::new(changed, stood_on);
        let free = tokio::time::timeout(limit, self.free(&wanted)).await;
        // It may have been given back at the last moment.
        if free.is_err()
            && let Err(taken) = self.try_take(&wanted)
        {
            return Err(not_given_back(&taken, limit));
        }
        Ok(Names {
            locks: Arc::clone(self),
            wanted,
        })
    }

    async fn free(&self, wanted: &Wanted) {
        loop {
            // Made before the look, so that it hears of what is given back after it.
            let told = self.told.notified();
            if self.try_take(wanted).is_ok() {
                return;
            }
            told.await;
        }
    }

    /// Says which is not free when one is not.
    fn try_take(&self, wanted: &Wanted) -> Result<(), Key> {
        let mut held = self.lock();
        match held.not_free(wanted) {
            Some(taken) => Err(taken.clone()),
            None => {
                held.take(wanted);
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_given_back(taken: &Key, limit: Duration) -> Error {
    Error::Unavailable(format!(
        "another request has worked on snapshot {:?} for {} seconds: try again later; if it hangs, \
         see the daemon's log",
        taken.as_str(),
        limit.as_secs_f32()
    ))
}

impl Wanted {
    fn new(changed: &[&Key], stood_on: Option<&Key>) -> Self {
        let mut changed: Vec<Key> = changed.iter().map(|key| (*key).clone()).collect();
        changed.sort();
        changed.dedup();
        // What is changed cannot be stood on too: the operation says what is wrong with that.
        let stood_on = stood_on.filter(|key| !changed.contains(key)).cloned();
        Self { changed, stood_on }
    }
}

impl Held {
    /// The first that is not free.
    fn not_free<'a>(&self, wanted: &'a Wanted) -> Option<&'a Key> {
        let is_changed = |key: &&Key| self.names.get(*key) == Some(&Use::Changed);
        let is_held = |key: &&Key| self.names.contains_key(*key);
        let held = wanted.changed.iter().find(is_held);
        held.or_else(|| wanted.stood_on.as_ref().filter(is_changed))
    }

    fn take(&mut self, wanted: &Wanted) {
        for key in &wanted.changed {
            self.names.insert(key.clone(), Use::Changed);
        }
        if let Some(key) = &wanted.stood_on {
            let nobody = Use::StoodOn { times: 0 };
            if let Use::StoodOn { times } = self.names.entry(key.clone()).or_insert(nobody) {
                *times += 1;
            }
        }
    }

    fn give_back(&mut self, wanted: &Wanted) {
        for key in &wanted.changed {
            self.names.remove(key);
        }
        if let Some(key) = &wanted.stood_on {
            match self.names.get_mut(key) {
                Some(Use::StoodOn { times }) if *times > 1 => *times -= 1,
                _ => drop(self.names.remove(key)),
            }
        }
    }
}

impl Names {
    /// That whoever changes a snapshot of this name holds it.
    pub(crate) fn check(&self, key: &Key) {
        debug_assert!(self.wanted.changed.contains(key), "{key:?} is not held");
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let mut held = self.locks.lock();
        held.give_back(&self.wanted);
        if held.waiting > 0 {
            self.locks.given_back.notify_all();
        }
        drop(held);
        self.locks.told.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::mpsc,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(1);

    impl Locks {
        fn free_now(self: &Arc<Self>, changed: &[&Key], stood_on: Option<&Key>) -> Names {
            self.take(changed, stood_on, Duration::ZERO).unwrap()
        }
    }

    /// Whether another thread gets these names while the test holds others.
    fn waits(locks: &Arc<Locks>, changed: &[&str], stood_on: Option<&str>, release: Names) -> bool {
        let (taken, was_taken) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let changed: Vec<Key> = changed.iter().map(|name| key(name)).collect();
                let changed: Vec<&Key> = changed.iter().collect();
                let guard = locks.take(&changed, stood_on.map(key).as_ref(), LONG);
                taken.send(()).unwrap();
                drop(guard);
            });
            let waits = loop {
                if was_taken.try_recv().is_ok() {
                    break false;
                }
                if locks.lock().waiting > 0 {
                    break true;
                }
                std::thread::yield_now();
            };
            drop(release);
            waits
        })
    }

    #[test]
    fn only_names_that_conflict_are_waited_for() {
        let locks = Arc::new(Locks::default());
        let hold = |changed: &str, on: Option<&str>| {
            locks.free_now(&[&key(changed)], on.map(key).as_ref())
        };
        assert!(waits(&locks, &["a"], None, hold("a", None)));
        assert!(waits(&locks, &["b", "a"], None, hold("a", None)));
        assert!(waits(&locks, &["b"], Some("a"), hold("a", None)));
        assert!(waits(&locks, &["p"], None, hold("a", Some("p"))));
        assert!(!waits(&locks, &["b"], None, hold("a", None)));
        assert!(!waits(&locks, &["b"], Some("p"), hold("a", Some("p"))));
        assert!(locks.lock().names.is_empty());
    }

    #[test]
    fn a_name_asked_for_twice_is_taken_once() {
        let locks = Arc::new(Locks::default());
        let a = key("a");
        drop(locks.free_now(&[&a, &a], Some(&a)));
        assert!(locks.lock().names.is_empty());
    }

    #[test]
    fn a_parent_is_free_when_the_last_has_left_it() {
        let locks = Arc::new(Locks::default());
        let (a, b, p) = (key("a"), key("b"), key("p"));
        let first = locks.free_now(&[&a], Some(&p));
        let second = locks.free_now(&[&b], Some(&p));
        drop(first);
        assert!(waits(&locks, &["p"], None, second));
        assert!(locks.lock().names.is_empty());
    }

    #[tokio::test]
    async fn who_waits_without_a_thread_is_told_when_names_are_free() {
        let locks = Arc::new(Locks::default());
        let (a, b) = (key("a"), key("b"));
        let mut context = Context::from_waker(Waker::noop());
        let (first, other) = (locks.free_now(&[&a], None), locks.free_now(&[&b], None));
        let wanted = [&a];
        let mut second = pin!(locks.wait(&wanted, None, LONG));
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(other);
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(first);
        let Poll::Ready(second) = second.as_mut().poll(&mut context) else {
            panic!("nobody holds it");
        };
        let second = second.unwrap();
        second.check(&a);
        drop(second);
        assert!(locks.lock().names.is_empty());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_for_who_does_not_give_back() {
        let locks = Arc::new(Locks::default());
        let (a, b) = (key("a"), key("b"));
        let hung = locks.free_now(&[&a], None);
        let refused = [
            locks.wait(&[&b, &a], None, SHORT).await,
            locks.wait(&[&b], Some(&a), SHORT).await,
            locks.take(&[&a], None, SHORT),
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
            assert!(error.to_string().contains("\"a\""), "{error}");
        }
        drop(hung);
        assert!(locks.lock().names.is_empty(), "those who gave up hold none");
    }
}
