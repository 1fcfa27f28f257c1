//! Who answers readers of blobs that are fetched meanwhile: events.rs and served.rs hear of them, several threads fetch, one completes.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use disk::Digest;
use snapshot_core::{Error, Result};
use sys::FileId;

use super::{
    background::{Pace, Queue},
    events::Events,
    faults::Options,
    requests::{Answer, Arrival, Failing, Outcome},
    served::Served,
    state::{Asker, Piece, Request, State},
    traces::Job,
};
use crate::host::{
    blob::{Blob, Source},
    client::Patience,
    metrics::Measured,
};

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

/// Readers of blobs, and what it takes to answer them.
#[derive(Debug)]
pub(super) struct Readers {
    /// By which the kernel tells of reads, where it can and somebody needs that.
    pub(super) events: OnceLock<Events>,
    /// By which readers ask themselves, the same.
    pub(super) served: OnceLock<Served>,
    pub(super) source: Arc<dyn Source + Send>,
    pub(super) options: Options,
    pub(super) measured: Measured,
    pub(super) state: Mutex<State>,
    /// There is something to fetch, a slot is free, or it is time to end.
    pub(super) changed: Condvar,
    pub(super) background: Queue<FileId>,
    pub(super) jobs: Queue<Job>,
    pub(super) is_ending: AtomicBool,
    /// Whether what was waited for last did not come in time.
    pub(super) are_silent: AtomicBool,
    /// Whether it is known which blobs an earlier daemon watched.
    pub(super) knows_watched: AtomicBool,
}

impl Readers {
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst)
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

    /// The answer, if it needs nothing that is not here.
    pub(super) fn arrive(
        &self,
        state: &mut State,
        request: Request,
        (outcome, pieces): (Outcome, Vec<Piece>),
    ) -> Option<Answer<Asker, Request>> {
        let number = request.number;
        let failing = match number {
            Asker::Event(_) => Failing::Late,
            Asker::Served(_) => Failing::AtOnce,
        };
        let how = (outcome, failing);
        match state.requests.arrive(number, request, how, &pieces) {
            Arrival::Answered(answer) => Some(answer),
            Arrival::Waits(new) => {
                self.measured.waits();
                let now = Instant::now();
                state
                    .wanted
                    .extend(new.into_iter().map(|piece| (piece, now)));
                self.changed.notify_all();
                None
            }
        }
    }

    /// Answers all of these: those of events with the state locked, those who are given bytes after that.
    pub(super) fn answer_all(
        &self,
        mut state: MutexGuard<'_, State>,
        answers: Vec<Answer<Asker, Request>>,
    ) {
        let mut others = Vec::new();
        for answer in answers {
            match (answer.number, self.events.get()) {
                (Asker::Event(number), Some(events)) => {
                    self.answer_event(events, &mut state, (number, answer));
                }
                _ => others.push(answer),
            }
        }
        drop(state);
        for answer in others {
            self.give(answer);
        }
    }

    pub(super) fn fetch(&self) {
        while let Some((piece, blob, why)) = self.next_piece() {
            let patience = match why {
                Why::Wanted(since) => Patience::Until(since + self.options.deadline),
                Why::Ahead | Why::Trace(_) => Patience::Once,
            };
            let filled = match &blob {
                Some(_) if self.is_given_up(&why) => Err(Error::Unavailable(
                    "the stores say nothing, and its time was over before they could be asked"
                        .to_owned(),
                )),
                Some(blob) => blob.fill_piece(piece.1, &*self.source, patience),
                None => Err(Error::Precondition("its blob has gone".to_owned())),
            };
            if filled.is_err() && self.is_ending() {
                // The next daemon fetches it, and answers.
                return;
            }
            match why {
                Why::Wanted(since) => {
                    self.note_silence(since, &filled);
                    self.fetched(piece, filled);
                }
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

    /// Whether who waits for a piece has waited long enough, and asking would make those behind wait longer for the same.
    fn is_given_up(&self, why: &Why) -> bool {
        let Why::Wanted(since) = why else {
            return false;
        };
        self.are_silent.load(Ordering::SeqCst) && since.elapsed() >= self.options.deadline
    }

    fn note_silence<T>(&self, since: Instant, filled: &Result<T>) {
        let is_late = since.elapsed() >= self.options.deadline;
        if filled.is_ok() || is_late {
            self.are_silent.store(filled.is_err(), Ordering::SeqCst);
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
        let answers = state.requests.fetched(piece, outcome);
        self.answer_all(state, answers);
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
        let Some(events) = self.events.get() else {
            return;
        };
        match events.group.unwatch(blob.data()) {
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
}
