//! What is known of blobs that are watched and of who waits; it does nothing.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use sys::FileId;

use super::requests::{Outcome, Requests};
use crate::host::blob::Blob;

/// A piece of the table of a blob.
pub(super) type Piece = (FileId, usize);

/// Who waits.
#[derive(Debug)]
pub(super) struct Request {
    /// What its answer goes to.
    pub(super) number: i32,
    /// Where it stands in the journal.
    pub(super) slot: usize,
    /// Its number is taken as long as this is open; none when another process had read it.
    pub(super) event: Option<File>,
    /// When it came.
    pub(super) since: Instant,
    /// How much is read.
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct State {
    /// All whose files may be read, also those that are whole.
    pub(super) blobs: HashMap<FileId, Arc<Blob>>,
    /// Of these, those whose reads are events.
    pub(super) watched: HashSet<FileId>,
    pub(super) requests: Requests<Piece, Request>,
    /// What somebody waits for, and since when.
    pub(super) wanted: VecDeque<(Piece, Instant)>,
    /// What nobody waits for yet.
    pub(super) ahead: VecDeque<Piece>,
    /// Slots of the journal without an event.
    pub(super) free: Vec<usize>,
    /// Of each blob the last piece that was waited for.
    last: HashMap<FileId, usize>,
    /// Until when a piece is not asked for again.
    failed: HashMap<Piece, Instant>,
}

impl State {
    /// Of nothing, with that many slots.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            blobs: HashMap::new(),
            watched: HashSet::new(),
            requests: Requests::new(),
            wanted: VecDeque::new(),
            ahead: VecDeque::new(),
            free: (0..slots).rev().collect(),
            last: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    /// What a read of that file needs first. When it is not known which file it is, it may be any; one that is not known
    /// here cannot be read.
    pub(super) fn needs_of(
        &self,
        file: Option<FileId>,
        range: Option<(u64, u64)>,
    ) -> (Outcome, Vec<Piece>) {
        let bytes = range.map_or(0..u64::MAX, |(first, count)| {
            first..first.saturating_add(count)
        });
        let missing_of = |id: &FileId, blob: &Arc<Blob>| {
            let missing = blob.missing_in(bytes.clone()).into_iter();
            missing.map(|index| (*id, index)).collect::<Vec<_>>()
        };
        let pieces = match file {
            None => {
                let all = self.blobs.iter();
                all.flat_map(|(id, blob)| missing_of(id, blob)).collect()
            }
            Some(id) => match self.blobs.get(&id) {
                Some(blob) => missing_of(&id, blob),
                None => return (Outcome::Failed, Vec::new()),
            },
        };
        let now = Instant::now();
        let has_failed = |piece: &Piece| self.failed.get(piece).is_some_and(|until| *until > now);
        if pieces.iter().any(has_failed) {
            return (Outcome::Failed, Vec::new());
        }
        (Outcome::Here, pieces)
    }

    /// Somebody needs that many pieces from `first` on: when they follow what was needed before, what comes next is fetched.
    pub(super) fn read_ahead(&mut self, id: FileId, first: usize, count: usize, most: usize) {
        let end = first + count;
        let before = self.last.insert(id, end - 1);
        // A hole may lie between two chunks.
        let follows = before.is_some_and(|last| (last..=last + 2).contains(&first));
        let Some(blob) = self.blobs.get(&id).filter(|_| follows) else {
            return;
        };
        let mut from = end;
        while let Some(index) = blob.first_missing(from..end + most) {
            if !self.ahead.contains(&(id, index)) {
                self.ahead.push_back((id, index));
            }
            from = index + 1;
        }
    }

    /// A piece could not be had; it is not tried again for so long.
    pub(super) fn note_failed(&mut self, piece: Piece, pause: Duration) {
        let now = Instant::now();
        self.failed.retain(|_, until| *until > now);
        self.failed.insert(piece, now + pause);
    }

    /// A blob is not there any more.
    pub(super) fn forget(&mut self, id: FileId) {
        self.blobs.remove(&id);
        self.last.remove(&id);
        self.ahead.retain(|(of, _)| *of != id);
    }
}
