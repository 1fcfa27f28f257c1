//! Deletes what is left of removed snapshots, behind everybody's back; must not decide what goes.
//!
//! ```text
//!  bury --> waiting -> a thread: Driver::release, delete, Driver::forget -> gone
//!    |        ^                      `-- an error --> failed -- at the next Cleanup --> waiting
//!    |        `-- buried by the thread ----.
//!    `-- an error --> failed, not buried --`-- at the next Cleanup or Prepare
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    Driver, Error, Note, Remains, Result, SnapshotId,
    directories::{Directories, Stage},
};

/// Trees that are deleted at once: the kernel serialises much of it, and others want the disk too.
const THREADS_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Sweeper {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    directories: Arc<Directories>,
    driver: Arc<dyn Driver>,
    work: Mutex<Work>,
    /// Set while `work` is locked, so that nobody who waits misses it.
    ending: AtomicBool,
    /// Something waits, or all is to end.
    asked: Condvar,
    /// Something was done.
    done: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// In the order in which it was buried.
type Number = u64;

/// What is to go.
#[derive(Debug)]
struct Body {
    remains: Remains,
    /// Where its directory is while it could not be buried.
    unburied: Option<Stage>,
}

#[derive(Debug, Default)]
struct Work {
    next: Number,
    waiting: VecDeque<(Number, Body)>,
    /// What a thread deletes now.
    running: Vec<Number>,
    failed: BTreeMap<Number, (Body, String)>,
}

impl Sweeper {
    /// Starts the threads.
    ///
    /// # Errors
    /// What keeps them from being started.
    pub(crate) fn start(directories: Arc<Directories>, driver: Arc<dyn Driver>) -> Result<Self> {
        let shared = Arc::new(Shared {
            directories,
            driver,
            work: Mutex::default(),
            ending: AtomicBool::new(false),
            asked: Condvar::new(),
            done: Condvar::new(),
        });
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let mut this = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        for _ in 0..count.min(THREADS_MAX) {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name("sweeper".to_owned())
                .spawn(move || shared.run())
                .map_err(Error::io(
                    "start a sweeper for",
                    this.shared.directories.root(),
                ))?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// Takes the name of a directory away and has it deleted. One that keeps its name (a full or
    /// failing disk) is tried again later: it has no record, so nobody else looks for it.
    pub(crate) fn bury(&self, id: SnapshotId, note: Option<Note>, from: Stage) {
        let buried = self.shared.directories.bury(id, from);
        let body = |unburied| Body {
            remains: Remains {
                id,
                note,
                directory: self.shared.directories.at(Stage::Buried, id),
            },
            unburied,
        };
        let mut work = self.shared.lock();
        let number = work.next;
        work.next += 1;
        match buried {
            Ok(_path) => {
                work.waiting.push_back((number, body(None)));
                drop(work);
                self.shared.asked.notify_one();
            }
            Err(error) => {
                let why = error.in_one_line();
                tracing::warn!(%id, why, "a removed snapshot could not be buried");
                work.failed.insert(number, (body(Some(from)), why));
            }
        }
    }

    /// Tries again, without waiting, what could not be buried.
    pub(crate) fn try_unburied(&self) {
        let mut work = self.shared.lock();
        let unburied = |(body, _): &(Body, String)| body.unburied.is_some();
        if !work.failed.values().any(unburied) {
            return;
        }
        let again = work.failed.extract_if(.., |_, failed| unburied(failed));
        let again: Vec<_> = again.map(|(number, (body, _))| (number, body)).collect();
        work.waiting.extend(again);
        drop(work);
        self.shared.asked.notify_all();
    }

    /// Waits until all that was handed over before is gone, what had failed tried once more, but
    /// not longer than that.
    ///
    /// # Errors
    /// [`Error::Unavailable`] says how much is left and why.
    pub(crate) fn finish(&self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        let mut work = self.shared.lock();
        let end = work.next;
        for (number, (body, _)) in std::mem::take(&mut work.failed) {
            work.waiting.push_back((number, body));
        }
        self.shared.asked.notify_all();
        while work.unfinished().any(|number| number < end) {
            if self.shared.is_ending() {
                return Err(Error::Unavailable("the daemon is ending".to_owned()));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Unavailable(format!(
                    "{} directories of removed snapshots are still being deleted after {} seconds",
                    work.unfinished().filter(|number| *number < end).count(),
                    limit.as_secs_f32()
                )));
            }
            let woken = self.shared.done.wait_timeout(work, left);
            work = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let failed = work.failed.range(..end);
        let Some((_, (_, why))) = failed.clone().next() else {
            return Ok(());
        };
        Err(Error::Unavailable(format!(
            "{} directories of removed snapshots are left; the first: {why}",
            failed.count()
        )))
    }

    /// How many directories could not be taken away when that was tried last, and why not the first.
    pub(crate) fn failed(&self) -> Option<(usize, String)> {
        let work = self.shared.lock();
        let (_, (_, why)) = work.failed.first_key_value()?;
        Some((work.failed.len(), why.clone()))
    }

    /// How many directories are not gone yet.
    pub(crate) fn left(&self) -> usize {
        let work = self.shared.lock();
        work.waiting.len() + work.running.len() + work.failed.len()
    }
}

impl Drop for Sweeper {
    /// What is left is swept at the next start.
    fn drop(&mut self) {
        let work = self.shared.lock();
        self.shared.ending.store(true, Ordering::Relaxed);
        drop(work);
        self.shared.asked.notify_all();
        self.shared.done.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in a driver's call was reported when it happened.
            let _ended = thread.join();
        }
    }
}

impl Work {
    fn unfinished(&self) -> impl Iterator<Item = Number> + '_ {
        let waiting = self.waiting.iter().map(|(number, _)| *number);
        waiting.chain(self.running.iter().copied())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn run(&self) {
        while let Some((number, mut body)) = self.next() {
            let _running = Running {
                shared: self,
                number,
            };
            if let Err(error) = self.sweep(&mut body) {
                let why = error.in_one_line();
                if !self.is_ending() {
                    tracing::warn!(id = %body.remains.id, why, "a removed snapshot is left");
                }
                self.lock().failed.insert(number, (body, why));
            }
        }
    }

    fn next(&self) -> Option<(Number, Body)> {
        let mut work = self.lock();
        loop {
            if self.is_ending() {
                return None;
            }
            if let Some((number, body)) = work.waiting.pop_front() {
                work.running.push(number);
                return Some((number, body));
            }
            let woken = self.asked.wait(work);
            work = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn sweep(&self, body: &mut Body) -> Result<()> {
        let remains = &body.remains;
        if let Some(from) = body.unburied {
            self.directories.bury(remains.id, from)?;
            body.unburied = None;
        }
        self.driver.release(remains)?;
        let go_on = || !self.is_ending();
        self.directories.delete(remains.id, &go_on)?;
        if let Err(error) = self.driver.forget(remains) {
            // The directory is gone: only the driver can find what it has left.
            let why = error.in_one_line();
            tracing::warn!(id = %remains.id, why, "a removed snapshot left something behind");
        }
        Ok(())
    }
}

/// What a thread works on; told to those who wait even when the driver panics.
struct Running<'a> {
    shared: &'a Shared,
    number: Number,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut work = self.shared.lock();
        work.running.retain(|number| *number != self.number);
        drop(work);
        self.shared.done.notify_all();
    }
}
