//! The one thread that writes: all changes that wait share a transaction and a sync. It knows no
//! snapshots.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use super::{
    storage::{Committed, Storage},
    tables::Tables,
};
use crate::{Error, Result};

/// Changes in one transaction. More would only make the first wait longer.
const BATCH_MAX: usize = 1024;

/// What a change must outlive before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// The end of this process, by kill -9 too.
    Process,
    /// A loss of power.
    Disk,
}

/// A change that waits.
struct Job {
    durability: Durability,
    work: Work,
}

/// Tries a change, or hears why it cannot be tried.
type Work = Box<dyn FnOnce(Result<&mut Tables<'_>>) -> Done + Send>;

/// A change that was tried.
struct Done {
    outcome: Outcome,
    answer: Answer,
}

/// Tells the asker the outcome, once it is known that the transaction was committed or not.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Changed,
    /// Nothing was written.
    Refused,
    /// The transaction can no longer be committed.
    Broken,
}

pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn start(storage: Arc<Storage>) -> Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || run(&storage, &queue))
            .map_err(Error::io("start a thread for", super::STORE_FILE))?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Makes a change and waits until it outlives what it must.
    ///
    /// # Errors
    /// Those of `change`, which must not have written anything then but for [`Error::Store`] and
    /// [`Error::Io`]; what keeps the transaction from being committed.
    pub(super) fn change<T: Send + 'static>(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.ask(durability, change, move |outcome| {
            // The asker waits for it below.
            let _asker_is_there = sender.send(outcome);
        });
        receiver.recv().unwrap_or_else(|_closed| Err(given_up()))
    }

    /// As [`Writer::change`], without waiting; `tell` runs on the writer's thread.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T> + Send + 'static,
        tell: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let work = move |tables: Result<&mut Tables<'_>>| {
            let changed = tables.and_then(change);
            Done {
                outcome: match &changed {
                    Ok(_) => Outcome::Changed,
                    Err(Error::Store { .. } | Error::Io { .. }) => Outcome::Broken,
                    Err(_) => Outcome::Refused,
                },
                answer: Box::new(move |committed| {
                    tell(changed.and_then(|it| committed.map(|()| it)));
                }),
            }
        };
        let job = Job {
            durability,
            work: Box::new(work),
        };
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // A job that is dropped tells its asker so.
        let _sent = jobs.as_ref().map(|jobs| jobs.send(job));
    }

    /// Ends the thread when all that was asked is done.
    pub(super) fn end(&self) {
        drop(
            self.jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // A panic of the writer has been seen by all who asked it.
        let _ended = thread.map(JoinHandle::join);
    }
}

fn given_up() -> Error {
    Error::Unavailable("the snapshot store gave the change up; try again".to_owned())
}

fn run(storage: &Storage, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let others = queue.try_iter().take(BATCH_MAX - 1);
        transact(storage, std::iter::once(first).chain(others).collect());
    }
}

/// Makes changes in one transaction and answers each.
fn transact(storage: &Storage, mut jobs: VecDeque<Job>) {
    let mut tried: Vec<(Durability, Done)> = Vec::with_capacity(jobs.len());
    let written = storage.write_through(|tables| {
        let mut changed = false;
        while let Some(job) = jobs.pop_front() {
            let done = (job.work)(Ok(&mut *tables));
            let outcome = done.outcome;
            tried.push((job.durability, done));
            match outcome {
                Outcome::Changed => changed = true,
                Outcome::Refused => {}
                Outcome::Broken => return Err(broken()),
            }
        }
        // With nothing to commit, each has a reason of its own and does not hear of this one.
        if changed { Ok(()) } else { Err(given_up()) }
    });
    match written {
        Ok(((), committed)) => answer(tried, committed),
        Err(error) => {
            let refusal = || for_each(&error);
            for job in jobs {
                let done = (job.work)(Err(refusal()));
                (done.answer)(Ok(()));
            }
            for (_, done) in tried {
                (done.answer)(Err(refusal()));
            }
        }
    }
}

/// Answers those first who need not wait for the disk.
fn answer(tried: Vec<(Durability, Done)>, committed: Committed<'_>) {
    let (to_process, to_disk): (Vec<_>, Vec<_>) =
        tried.into_iter().partition(|(durability, done)| {
            *durability == Durability::Process || done.outcome == Outcome::Refused
        });
    for (_, done) in to_process {
        (done.answer)(Ok(()));
    }
    let settled = committed.settle();
    for (_, done) in to_disk {
        (done.answer)(match &settled {
            Ok(()) => Ok(()),
            Err(error) => Err(for_each(error)),
        });
    }
}

/// An error cannot be given to several askers; what it says can.
fn for_each(error: &Error) -> Error {
    error.again(error.in_one_line())
}

fn broken() -> Error {
    Error::Io {
        action: "write",
        path: super::STORE_FILE.into(),
        source: std::io::Error::other("another change of the same transaction failed"),
    }
}
