//! Readers of whom the kernel tells by events of fanotify: one thread takes them.
//!
//! Events are read, and answers are written, with the state locked: an answer goes to the oldest event of its number, so
//! none may be read between the decision on one and its answer.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Instant,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use snapshot_core::{Error, Result};
use sys::{EventJournal, FileId, PreAccess, PreContent, Verdict};

use super::{
    faults::SLOTS,
    holder::Holder,
    readers::Readers,
    requests::{Answer, Outcome},
    state::{Asker, Piece, ReadBy, Request, State},
};
use crate::host::blob::Blob;

/// Events that are taken before others get the lock.
const EVENTS_MAX: usize = 64;

/// What a holder keeps: group, journal.
const KEPT: usize = 2;

/// The group of all files that are watched, and what it takes to answer who reads of them.
#[derive(Debug)]
pub(super) struct Events {
    pub(super) group: PreContent,
    journal: EventJournal,
    holder: Mutex<Holder<KEPT>>,
    /// Makes who takes events look what has changed.
    waker: UnixStream,
    woken: UnixStream,
}

impl Events {
    /// Nothing is watched yet.
    ///
    /// # Errors
    /// What keeps it from watching at all.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let failed = || Error::io("watch blobs below", root);
        let group = PreContent::new().map_err(failed())?;
        let journal = EventJournal::new(SLOTS).map_err(failed())?;
        Self::of(root, (group, journal, holder(root)))
    }

    /// Those of a daemon that was before this one, if it had watched something.
    ///
    /// # Errors
    /// For a holder that is none of ours.
    pub(super) fn take_over(root: &Path) -> Result<Option<Self>> {
        let mut holder = holder(root);
        let Some([group, journal]) = holder.take()? else {
            return Ok(None);
        };
        let journal = EventJournal::open(journal);
        let journal = journal.map_err(Error::io("take over the journal of", root))?;
        Self::of(root, (PreContent::from(group), journal, holder)).map(Some)
    }

    fn of(
        root: &Path,
        (group, journal, holder): (PreContent, EventJournal, Holder<KEPT>),
    ) -> Result<Self> {
        let failed = || Error::io("start answering readers of", root);
        let (waker, woken) = UnixStream::pair().map_err(failed())?;
        for end in [&waker, &woken] {
            end.set_nonblocking(true).map_err(failed())?;
        }
        Ok(Self {
            group,
            journal,
            holder: Mutex::new(holder),
            waker,
            woken,
        })
    }

    /// How many events may wait.
    pub(super) fn slots(&self) -> usize {
        self.journal.slots()
    }

    pub(super) fn wake(&self) {
        // When it is full, it will be read.
        drop((&self.waker).write(&[0]));
    }

    fn kept(&self) -> [BorrowedFd<'_>; KEPT] {
        [self.group.as_fd(), self.journal.as_fd()]
    }

    pub(super) fn lock_holder(&self) -> MutexGuard<'_, Holder<KEPT>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn holder(root: &Path) -> Holder<KEPT> {
    Holder::at(root.join("holder"))
}

impl Readers {
    /// What a killed daemon had read and not answered.
    pub(super) fn take_debts(&self, events: &Events) {
        let debts = events.journal.owed();
        if debts.is_empty() {
            return;
        }
        tracing::info!(
            readers = debts.len(),
            "who waited for the daemon before this is answered"
        );
        let mut state = self.lock();
        for debt in debts {
            state.free.retain(|slot| *slot != debt.slot);
            // Where another descriptor has it, requests.rs sees to it that nobody is answered too early.
            let kept = sys::take_number(events.journal.as_fd(), debt.number);
            let request = Request {
                number: Asker::Event(debt.number),
                wants: None,
                slot: debt.slot,
                keeps_number: kept.ok().flatten(),
                read_by: ReadBy::Killed,
                since: Instant::now(),
                bytes: debt.range.map_or(0, |(_, count)| count),
                rounds: 0,
            };
            let needs = state.needs_of(debt.file, debt.range);
            self.arrive_by_event(events, &mut state, (debt.number, request), needs);
        }
    }

    /// Finds out which of these blobs are watched, and by what they can be written. A read of a watched one is an event, with
    /// a descriptor, and is let go at once: nobody looks at what it reads.
    pub(super) fn knock(&self, blobs: &[Arc<Blob>]) {
        for blob in blobs {
            if blob.is_whole() {
                self.completed(blob);
                continue;
            }
            // Zeros, or what is there.
            let read = blob.data().read_at(&mut [0], 0);
            let read = read.map_err(Error::io("read", blob.path()));
            // One that cannot be read may be watched: by its own descriptor, writing it would be an event that waits for itself.
            let written = read.and_then(|_| blob.write_by_own());
            // So that nobody is between looking and waiting.
            drop(self.lock());
            self.changed.notify_all();
            if let Err(error) = written {
                let why = error.in_one_line();
                tracing::error!(why, "a blob is not written to before somebody reads it");
            }
        }
        self.knows_watched.store(true, Ordering::SeqCst);
    }

    pub(super) fn dispatch(&self, events: &Events) {
        while !self.is_ending() {
            match self.wait(events) {
                Ok(true) => self.restart_holder(events),
                Ok(false) => {}
                Err(errno) => {
                    tracing::error!(%errno, "events cannot be waited for");
                    return;
                }
            }
            while matches!((&events.woken).read(&mut [0; 64]), Ok(1..)) {}
            self.take_events(events);
        }
    }

    /// Until there is something to do: whether the holder has ended.
    fn wait(&self, events: &Events) -> nix::Result<bool> {
        let connection = {
            let holder = events.lock_holder();
            let connection = holder.connection().map(|one| one.try_clone_to_owned());
            connection.and_then(Result::ok)
        };
        let readable = PollFlags::POLLIN;
        let mut fds = vec![
            PollFd::new(events.group.as_fd(), readable),
            PollFd::new(events.woken.as_fd(), readable),
        ];
        if let Some(connection) = &connection {
            fds.push(PollFd::new(connection.as_fd(), readable));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        Ok(fds.get(2).is_some_and(|fd| fd.any().unwrap_or_default()))
    }

    fn restart_holder(&self, events: &Events) {
        let mut holder = events.lock_holder();
        let ended = holder.number();
        holder.has_ended(ended);
        if self.is_ending() {
            return;
        }
        match holder.ensure(events.kept()) {
            Ok(()) => tracing::warn!("fd-holder had ended and was started again"),
            Err(error) => {
                let why = error.in_one_line();
                tracing::error!(
                    why,
                    "fd-holder has ended: readers are not protected from the end of this daemon"
                );
            }
        }
    }

    fn take_events(&self, events: &Events) {
        let mut state = self.lock();
        for _ in 0..EVENTS_MAX {
            while !state.has_slot() && !self.is_ending() {
                let woken = self.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
            let Some(slot) = state.free.pop().filter(|_| !self.is_ending()) else {
                return;
            };
            match events.group.read(&events.journal, slot) {
                Ok(Some(event)) => self.take(events, &mut state, event),
                Ok(None) => {
                    state.free.push(slot);
                    return;
                }
                Err(error) => {
                    state.free.push(slot);
                    tracing::error!(%error, "an event cannot be read");
                    return;
                }
            }
        }
    }

    fn take(&self, events: &Events, state: &mut State, event: PreAccess) {
        self.measured.fault();
        let id = FileId::of(&event.file).ok();
        self.learn_writer(state, &event, id);
        if let (Some(id), Some((first, count))) = (id, event.range)
            && let Some(blob) = state.blobs.get(&id)
        {
            let pieces = blob.pieces_in(&(first..first.saturating_add(count)));
            state.recordings.touched(id, pieces);
        }
        let (outcome, pieces) = if self.is_own_knock(&event) {
            // Not refused: its number may be that of a reader for whom the daemon before this was asked.
            (Outcome::Here, Vec::new())
        } else {
            state.needs_of(id, event.range)
        };
        if let (Some(id), [first, ..]) = (id, &pieces[..]) {
            let ahead = self.options.read_ahead;
            state.read_ahead(id, first.1, pieces.len(), ahead);
        }
        let number = event.file.as_raw_fd();
        let request = Request {
            number: Asker::Event(number),
            wants: None,
            slot: event.slot,
            bytes: event.range.map_or(0, |(_, count)| count),
            keeps_number: Some(event.file.into()),
            read_by: ReadBy::This,
            since: Instant::now(),
            rounds: 0,
        };
        self.arrive_by_event(events, state, (number, request), (outcome, pieces));
    }

    /// The first event of a blob that an earlier daemon watched brings what it can be written by.
    fn learn_writer(&self, state: &mut State, event: &PreAccess, id: Option<FileId>) {
        if let Some(id) = id
            && let Some(blob) = state.blobs.get(&id).cloned()
            && !blob.has_writer()
        {
            if let Ok(writer) = event.file.try_clone() {
                blob.write_by(writer);
                self.changed.notify_all();
            }
            if !state.watched.contains(&id) {
                self.note_watched(state, id);
                self.complete_later(id);
            }
        }
    }

    /// Whether an event is what this process asked for to learn by what a blob is written. Another
    /// reader may have been quicker; this process reads of no blob but to learn that.
    fn is_own_knock(&self, event: &PreAccess) -> bool {
        event.pid.unsigned_abs() == std::process::id() && !self.knows_watched.load(Ordering::SeqCst)
    }

    /// Sees to it that the holder runs; not when it may have been ended.
    pub(super) fn ensure_holder(&self, events: &Events) -> Result<()> {
        let mut holder = events.lock_holder();
        if self.is_ending() {
            return Err(Error::Unavailable("the daemon ends".to_owned()));
        }
        let was_there = holder.connection().is_some();
        holder.ensure(events.kept())?;
        if !was_there {
            events.wake();
        }
        Ok(())
    }

    fn arrive_by_event(
        &self,
        events: &Events,
        state: &mut State,
        (number, request): (i32, Request),
        needs: (Outcome, Vec<Piece>),
    ) {
        if let Some(answer) = self.arrive(state, request, needs) {
            self.answer_event(events, state, (number, answer));
        }
    }

    pub(super) fn answer_event(
        &self,
        events: &Events,
        state: &mut State,
        (number, answer): (i32, Answer<Asker, Request>),
    ) {
        let verdict = match answer.outcome {
            Outcome::Here => Verdict::Allow,
            Outcome::Failed => Verdict::Fail,
        };
        for request in &answer.requests {
            match events.group.answer(number, verdict) {
                Ok(()) => {}
                // A daemon that was killed had answered it already.
                Err(error) if request.read_by == ReadBy::Killed => {
                    tracing::debug!(%error, "who waited has been answered");
                }
                Err(error) => tracing::error!(%error, "a reader cannot be answered"),
            }
            match verdict {
                Verdict::Allow => self.measured.served(request.bytes, request.since.elapsed()),
                Verdict::Fail => self.measured.fault_failed(),
            }
        }
        for request in answer.requests {
            events.journal.clear(request.slot);
            state.free.push(request.slot);
            // From now on another may have it.
            drop(request.keeps_number);
        }
        self.changed.notify_all();
    }
}
