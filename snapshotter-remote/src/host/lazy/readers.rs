//! Who answers readers of watched blobs: one thread takes events, several fetch, one completes.
//!
//! Events are read, and answers are written, with the state locked: an answer goes to the oldest event of its number, so
//! none may be read between the decision on one and its answer.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use disk::Digest;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use snapshot_core::{Error, Result};
use sys::{EventJournal, FileId, PreAccess, PreContent, Verdict};

use super::{
    background::{Pace, Queue},
    faults::Options,
    holder::Holder,
    requests::{Answer, Arrival, Outcome},
    state::{Piece, ReadBy, Request, State},
    traces::Job,
};
use crate::host::{
    blob::{Blob, Source},
    client::Patience,
    metrics::Measured,
};

/// Events that are taken before others get the lock.
const EVENTS_MAX: usize = 64;

/// A piece that could not be had is not tried again for so long: a reader asks twice, first ahead, then for itself.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// Why a piece is fetched.
#[derive(Debug, Clone, Copy)]
enum Why {
    /// Somebody has waited for it since then.
    Wanted(Instant),
    /// Somebody will read it next.
    Ahead,
    /// Others read it first of that disk.
    Trace(Digest),
}

/// Readers of watched blobs, and what it takes to answer them.
#[derive(Debug)]
pub(super) struct Readers {
    pub(super) group: PreContent,
    pub(super) journal: EventJournal,
    pub(super) holder: Mutex<Holder>,
    pub(super) source: Arc<dyn Source + Send>,
    pub(super) options: Options,
    pub(super) measured: Measured,
    pub(super) state: Mutex<State>,
    /// There is something to fetch, a slot is free, or it is time to end.
    pub(super) changed: Condvar,
    pub(super) background: Queue<FileId>,
    pub(super) jobs: Queue<Job>,
    /// Makes the dispatcher look what has changed.
    pub(super) waker: UnixStream,
    pub(super) is_ending: AtomicBool,
    /// Whether it is known which blobs an earlier daemon watched.
    pub(super) knows_watched: AtomicBool,
}

impl Readers {
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst)
    }

    pub(super) fn wake(&self) {
        // When it is full, it will be read.
        drop((&self.waker).write(&[0]));
    }

    /// What a killed daemon had read and not answered.
    pub(super) fn take_debts(&self) {
        let debts = self.journal.owed();
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
            let kept = sys::take_number(self.journal.as_fd(), debt.number);
            let request = Request {
                number: debt.number,
                slot: debt.slot,
                keeps_number: kept.ok().flatten(),
                read_by: ReadBy::Killed,
                since: Instant::now(),
                bytes: debt.range.map_or(0, |(_, count)| count),
            };
            let needs = state.needs_of(debt.file, debt.range);
            self.arrive(&mut state, request, needs);
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

    pub(super) fn dispatch(&self, woken: &UnixStream) {
        while !self.is_ending() {
            match self.wait(woken) {
                Ok(true) => self.restart_holder(),
                Ok(false) => {}
                Err(errno) => {
                    tracing::error!(%errno, "events cannot be waited for");
                    return;
                }
            }
            while matches!((&*woken).read(&mut [0; 64]), Ok(1..)) {}
            self.take_events();
        }
    }

    /// Until there is something to do: whether the holder has ended.
    fn wait(&self, woken: &UnixStream) -> nix::Result<bool> {
        let connection = {
            let holder = self.lock_holder();
            let connection = holder.connection().map(|one| one.try_clone_to_owned());
            connection.and_then(Result::ok)
        };
        let readable = PollFlags::POLLIN;
        let mut fds = vec![
            PollFd::new(self.group.as_fd(), readable),
            PollFd::new(woken.as_fd(), readable),
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

    fn restart_holder(&self) {
        let mut holder = self.lock_holder();
        holder.has_ended();
        if self.is_ending() {
            return;
        }
        match holder.ensure(&self.group, &self.journal) {
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

    fn take_events(&self) {
        let mut state = self.lock();
        for _ in 0..EVENTS_MAX {
            while !state.has_slot() && !self.is_ending() {
                let woken = self.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
            let Some(slot) = state.free.pop().filter(|_| !self.is_ending()) else {
                return;
            };
            match self.group.read(&self.journal, slot) {
                Ok(Some(event)) => self.take(&mut state, event),
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

    fn take(&self, state: &mut State, event: PreAccess) {
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
        let request = Request {
            number: event.file.as_raw_fd(),
            slot: event.slot,
            bytes: event.range.map_or(0, |(_, count)| count),
            keeps_number: Some(event.file.into()),
            read_by: ReadBy::This,
            since: Instant::now(),
        };
        self.arrive(state, request, (outcome, pieces));
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

    pub(super) fn note_watched(&self, state: &mut State, id: FileId) {
        state.watched.insert(id);
        self.measured.watched(state.watched.len());
    }

    /// What nobody reads of it is fetched as well, when it is time.
    pub(super) fn complete_later(&self, id: FileId) {
        let at = Instant::now() + self.options.complete_after;
        self.background.push(at, id);
    }

    /// Sees to it that the holder runs; not when it may have been ended.
    pub(super) fn ensure_holder(&self) -> Result<()> {
        let mut holder = self.lock_holder();
        if self.is_ending() {
            return Err(Error::Unavailable("the daemon ends".to_owned()));
        }
        let was_there = holder.connection().is_some();
        holder.ensure(&self.group, &self.journal)?;
        if !was_there {
            self.wake();
        }
        Ok(())
    }

    fn arrive(
        &self,
        state: &mut State,
        request: Request,
        (outcome, pieces): (Outcome, Vec<Piece>),
    ) {
        let number = request.number;
        match state.requests.arrive(number, request, outcome, &pieces) {
            Arrival::Answered(answer) => self.answer(state, answer),
            Arrival::Waits(new) => {
                self.measured.waits();
                let now = Instant::now();
                state
                    .wanted
                    .extend(new.into_iter().map(|piece| (piece, now)));
                self.changed.notify_all();
            }
        }
    }

    pub(super) fn answer(&self, state: &mut State, answer: Answer<Request>) {
        let verdict = match answer.outcome {
            Outcome::Here => Verdict::Allow,
            Outcome::Failed => Verdict::Fail,
        };
        for request in &answer.requests {
            match self.group.answer(answer.number, verdict) {
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
            self.journal.clear(request.slot);
            state.free.push(request.slot);
            // From now on another may have it.
            drop(request.keeps_number);
        }
        self.changed.notify_all();
    }

    pub(super) fn fetch(&self) {
        while let Some((piece, blob, why)) = self.next_piece() {
            let patience = match why {
                Why::Wanted(since) => Patience::Until(since + self.options.deadline),
                Why::Ahead | Why::Trace(_) => Patience::Once,
            };
            let filled = match &blob {
                Some(blob) => blob.fill_piece(piece.1, &*self.source, patience),
                None => Err(Error::Precondition("its blob has gone".to_owned())),
            };
            if filled.is_err() && self.is_ending() {
                // The next daemon fetches it, and answers.
                return;
            }
            match why {
                Why::Wanted(_) => self.fetched(piece, filled),
                Why::Ahead => {}
                Why::Trace(disk) => {
                    let bytes = blob.as_ref().map_or(0, |blob| blob.piece_bytes(piece.1));
                    self.prefetched(disk, bytes, filled);
                }
            }
            if let Some(blob) = blob.filter(|blob| blob.is_whole()) {
                self.completed(&blob);
            }
        }
    }

    /// What is wanted first, with its blob; then what will be, and then what was on other hosts.
    fn next_piece(&self) -> Option<(Piece, Option<Arc<Blob>>, Why)> {
        let mut state = self.lock();
        loop {
            if self.is_ending() {
                return None;
            }
            let wanted = state
                .next()
                .map(|(piece, since)| (piece, since.map_or(Why::Ahead, Why::Wanted)));
            let now = Instant::now();
            let found = wanted.map_or_else(
                || {
                    let next = state.next_of_traces(now, || self.source.has_room());
                    // What is here already was passed over.
                    self.measured.prefetching(state.prefetch.len());
                    next.map(|(disk, piece)| (piece, Why::Trace(disk)))
                },
                Ok,
            );
            state = match found {
                Ok((piece, why)) => return Some((piece, state.blobs.get(&piece.0).cloned(), why)),
                Err(Some(at)) => {
                    let woken = self.changed.wait_timeout(state, at - now);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                Err(None) => {
                    let woken = self.changed.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    fn fetched(&self, piece: Piece, filled: Result<()>) {
        let mut state = self.lock();
        let outcome = match filled {
            Ok(()) => Outcome::Here,
            Err(error) => {
                let why = error.in_one_line();
                tracing::error!(
                    why,
                    "readers are told that a piece of an image cannot be read"
                );
                state.note_failed(piece, FAILED_FOR);
                Outcome::Failed
            }
        };
        for answer in state.requests.fetched(piece, outcome) {
            self.answer(&mut state, answer);
        }
    }

    pub(super) fn completed(&self, blob: &Blob) {
        let Ok(id) = FileId::of(blob.data()) else {
            return;
        };
        if let Err(error) = blob.sync() {
            let why = error.in_one_line();
            tracing::warn!(
                why,
                "a blob that is whole stays watched until it is on the disk"
            );
            self.background.again(id);
            return;
        }
        let mut state = self.lock();
        self.unwatch(&mut state, blob, id);
    }

    /// Unless it is about to be mounted, or something of it has gone meanwhile.
    pub(super) fn unwatch(&self, state: &mut State, blob: &Blob, id: FileId) {
        // Nor while it is noted who reads it.
        if !blob.is_whole() || blob.is_being_mounted() || state.recordings.has(id) {
            return;
        }
        let was_watched = state.watched.remove(&id);
        match self.group.unwatch(blob.data()) {
            Ok(()) => tracing::debug!(blob = %Digest(blob.name()), "a blob is watched no more"),
            Err(error) if was_watched => tracing::warn!(%error, "a blob stays watched"),
            Err(_never_was) => {}
        }
        blob.write_by_path();
        self.measured.watched(state.watched.len());
    }

    /// Fetches what nobody reads, if that is wanted, and sees to it that who is whole is watched no more.
    pub(super) fn complete(&self) {
        while let Some(id) = self.background.next() {
            let Some(blob) = self.lock().blobs.get(&id).cloned() else {
                continue;
            };
            let is_left = self.options.complete_bytes_per_second == 0;
            if is_left && !blob.is_whole() {
                continue;
            }
            let mut pace = Pace::new(self.options.complete_bytes_per_second);
            let mut from = 0;
            while let Some(index) = blob.first_missing(from..usize::MAX) {
                from = index + 1;
                if !self.background.keep(&pace) {
                    return;
                }
                if !self.source.has_room() {
                    tracing::debug!(blob = %Digest(blob.name()), "the cache has no room for what nobody reads");
                    self.background.again(id);
                    break;
                }
                // As long as it is open here, no other file has its number.
                if !self.lock().blobs.contains_key(&id) {
                    break;
                }
                if blob
                    .fill_piece(index, &*self.source, Patience::Deadline)
                    .is_err()
                {
                    self.background.again(id);
                    break;
                }
                pace.took(blob.piece_bytes(index));
            }
            if blob.is_whole() {
                self.completed(&blob);
            }
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
