//! What is known of blobs that are watched and of who waits; it does nothing.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use disk::Digest;
use sys::FileId;

use super::{
    fuse::Node,
    prefetch::Prefetch,
    recordings::Recordings,
    requests::{Answer, Outcome, Requests},
    traces::need_of,
};
use crate::host::blob::Blob;

/// A piece of the table of a blob.
pub(super) type Piece = (FileId, usize);

/// What an answer goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    /// An event, by the number of its descriptor.
    Event(i32),
    /// A request of the FUSE connection, by its number.
    Served(u64),
}

/// Who waits.
#[derive(Debug)]
pub(super) struct Request {
    /// What its answer goes to.
    pub(super) number: Asker,
    /// The file, and the first byte, of who is given the bytes themselves.
    pub(super) wants: Option<(FileId, u64)>,
    /// Where it stands in the journal.
    pub(super) slot: usize,
    /// As long as this is open, no other gets its number.
    pub(super) keeps_number: Option<OwnedFd>,
    /// Which process had read it.
    pub(super) read_by: ReadBy,
    /// When it came.
    pub(super) since: Instant,
    /// How much is read.
    pub(super) bytes: u64,
    /// How often what it wants was here and has gone before it was given.
    pub(super) rounds: u8,
}

/// A process that has read an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadBy {
    This,
    /// It may have answered, too.
    Killed,
}

#[derive(Debug)]
pub(super) struct State {
    /// All whose files may be read, also those that are whole.
    pub(super) blobs: HashMap<FileId, Arc<Blob>>,
    /// Of these, those that are files of the FUSE connection, by their numbers there; none where it is not known which of two has one.
    nodes: HashMap<u64, Option<FileId>>,
    /// Of all, those whose reads are events.
    pub(super) watched: HashSet<FileId>,
    pub(super) requests: Requests<Asker, Piece, Request>,
    /// What somebody waits for, and since when.
    pub(super) wanted: VecDeque<(Piece, Instant)>,
    /// What nobody waits for yet.
    pub(super) ahead: VecDeque<Piece>,
    /// What is fetched along traces, after all that.
    pub(super) prefetch: Prefetch,
    /// What is read first of disks.
    pub(super) recordings: Recordings,
    /// Slots of the journal without an event.
    pub(super) free: Vec<usize>,
    /// Of these, those that the next daemon needs.
    kept_slots: usize,
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
            nodes: HashMap::new(),
            watched: HashSet::new(),
            requests: Requests::new(),
            wanted: VecDeque::new(),
            ahead: VecDeque::new(),
            prefetch: Prefetch::new(1, 0),
            recordings: Recordings::default(),
            free: (0..slots).rev().collect(),
            kept_slots: slots / 16,
            last: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    /// The blob becomes a file of the FUSE connection: whether it can. Not while another has its number: nobody could tell whose
    /// contents are asked for.
    pub(super) fn note_node(&mut self, blob: &Arc<Blob>, id: FileId) -> bool {
        self.blobs.insert(id, Arc::clone(blob));
        let Some(number) = Node::number_of(blob.name()) else {
            return false;
        };
        let is_other = |of: &Option<FileId>| {
            let other = of.and_then(|id| self.blobs.get(&id));
            other.is_none_or(|other| other.name() != blob.name())
        };
        if self.nodes.get(&number).is_some_and(is_other) {
            return false;
        }
        self.nodes.insert(number, Some(id));
        true
    }

    /// The same for all blobs of an earlier daemon; those that it served come first. Where it is not known which of two was a file, neither
    /// is one: its name, if so.
    pub(super) fn note_nodes_of_before(
        &mut self,
        blobs: impl IntoIterator<Item = (Arc<Blob>, FileId)>,
    ) -> Vec<[u8; 32]> {
        let mut blobs: Vec<_> = blobs.into_iter().collect();
        blobs.sort_by_key(|(blob, _)| !blob.is_served());
        let mut refused = Vec::new();
        for (blob, id) in blobs {
            if self.note_node(&blob, id) {
                continue;
            }
            let number = Node::number_of(blob.name()).unwrap_or_default();
            let first = self.node(number);
            if blob.is_served() || first.is_none_or(|(_, first)| !first.is_served()) {
                self.nodes.insert(number, None);
                refused.push(blob.name());
            }
        }
        refused
    }

    /// What becomes of the number of a blob that has gone: another that was kept from it has it now.
    fn free_node(&mut self, blob: &Blob, id: FileId) {
        let Some(number) = Node::number_of(blob.name()) else {
            return;
        };
        match self.nodes.get(&number) {
            Some(Some(of)) if *of == id => {
                self.nodes.remove(&number);
            }
            Some(None) => {
                let of =
                    |other: &&FileId| Node::number_of(self.blobs[*other].name()) == Some(number);
                let left: Vec<FileId> = self.blobs.keys().filter(of).copied().collect();
                match left[..] {
                    [] => drop(self.nodes.remove(&number)),
                    [one] => drop(self.nodes.insert(number, Some(one))),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The file of that number.
    pub(super) fn node(&self, number: u64) -> Option<(FileId, Arc<Blob>)> {
        let id = (*self.nodes.get(&number)?)?;
        Some((id, Arc::clone(self.blobs.get(&id)?)))
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

    /// What is to be fetched first, with when it was wanted if it was. What nothing can be written by yet has to wait, and no
    /// fetcher with it: others may have to be answered before an event brings that.
    pub(super) fn next(&mut self) -> Option<(Piece, Option<Instant>)> {
        let blobs = &self.blobs;
        let can_be = |piece: &Piece| blobs.get(&piece.0).is_none_or(|blob| blob.has_writer());
        let wanted = self.wanted.iter().position(|(piece, _)| can_be(piece));
        let ahead = self.ahead.iter().position(can_be);
        let wanted = wanted.and_then(|index| self.wanted.remove(index));
        if let Some((piece, since)) = wanted {
            return Some((piece, Some(since)));
        }
        let piece = self.ahead.remove(ahead?)?;
        Some((piece, None))
    }

    /// The next piece along a trace, if nothing else is to be fetched; else when there may be one, if that is known.
    pub(super) fn next_of_traces(
        &mut self,
        now: Instant,
        has_room: impl FnOnce() -> bool,
    ) -> Result<(Digest, Piece), Option<Instant>> {
        let blobs = &self.blobs;
        let need = |(id, index): &Piece| need_of(blobs.get(id), *index);
        self.prefetch.next(now, need, has_room)
    }

    /// Whether one more event may be read. Some slots are left to the next daemon, should this one be killed: it may owe
    /// answers that it cannot give before another event brings what a blob is written by.
    pub(super) fn has_slot(&self) -> bool {
        let waits_for_event = |blob: &Arc<Blob>| !blob.has_writer() && !blob.is_whole();
        match self.free.len() {
            0 => false,
            few if few <= self.kept_slots => self.blobs.values().any(waits_for_event),
            _ => true,
        }
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

    /// A blob is not there any more: what was wanted of it and is fetched by nobody yet has failed, and who is answered then.
    /// Its number may be that of another file soon.
    pub(super) fn forget(&mut self, id: FileId) -> Vec<Answer<Asker, Request>> {
        if let Some(blob) = self.blobs.remove(&id) {
            self.free_node(&blob, id);
        }
        self.last.remove(&id);
        self.failed.retain(|(of, _), _| *of != id);
        self.ahead.retain(|(of, _)| *of != id);
        let is_of = |(piece, _): &(Piece, Instant)| piece.0 == id;
        let dropped: Vec<_> = self.wanted.iter().copied().filter(is_of).collect();
        self.wanted.retain(|wanted| !is_of(wanted));
        let failed = |(piece, _)| self.requests.fetched(piece, Outcome::Failed);
        dropped.into_iter().flat_map(failed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::requests::Failing, *};
    use crate::{
        chunk::ChunkId,
        table::{Piece as Of, Table},
    };

    /// A blob of which nothing is here: three chunks, a hole, five chunks.
    fn scene() -> (tempfile::TempDir, State, FileId) {
        let chunk = |value: u8| Of::Chunk {
            id: ChunkId::of(&[value]),
            blocks: 16,
        };
        let mut pieces: Vec<Of> = (0..3).map(chunk).collect();
        pieces.push(Of::Hole { blocks: 16 });
        pieces.extend((3..8).map(chunk));
        let table = Table::new(pieces).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let blob = Blob::open(directory.path(), table.digest(), || Ok(table.clone()));
        let blob = Arc::new(blob.unwrap());
        let id = FileId::of(blob.data()).unwrap();
        let mut state = State::new(4);
        state.blobs.insert(id, blob);
        (directory, state, id)
    }

    fn indexes(pieces: impl IntoIterator<Item = Piece>) -> Vec<usize> {
        pieces.into_iter().map(|(_, index)| index).collect()
    }

    #[test]
    fn a_read_needs_what_it_touches_and_one_of_an_unknown_file_that_of_all() {
        let (_directory, mut state, id) = scene();
        let block = 4096;
        let check = |state: &State, file, range, expected: (Outcome, &[usize])| {
            let (outcome, pieces) = state.needs_of(file, range);
            assert_eq!((outcome, &indexes(pieces)[..]), expected, "{range:?}");
        };
        let (here, failed) = (Outcome::Here, Outcome::Failed);
        let range = |first: u64, count: u64| Some((first * block, count * block));
        check(&state, Some(id), range(15, 2), (here, &[0, 1]));
        check(&state, Some(id), range(48, 16), (here, &[]));
        check(&state, None, range(15, 2), (here, &[0, 1]));
        check(&state, Some(id), None, (here, &[0, 1, 2, 4, 5, 6, 7, 8]));
        check(
            &state,
            Some(id),
            Some((5, u64::MAX)),
            (here, &[0, 1, 2, 4, 5, 6, 7, 8]),
        );
        let stranger = FileId { inode: 0, ..id };
        check(&state, Some(stranger), range(0, 1), (failed, &[]));
        state.note_failed((id, 1), Duration::from_secs(3600));
        check(&state, Some(id), range(15, 2), (failed, &[]));
        check(&state, Some(id), range(15, 1), (here, &[0]));
        state.note_failed((id, 1), Duration::ZERO);
        check(&state, Some(id), range(15, 2), (here, &[0, 1]));
        assert!(state.forget(id).is_empty());
        check(&state, Some(id), range(15, 1), (failed, &[]));
    }

    #[test]
    fn a_file_is_known_by_its_number_and_two_with_one_number_are_not() {
        let (directory, mut state, id) = scene();
        let blob = Arc::clone(&state.blobs[&id]);
        let number = Node::number_of(blob.name()).unwrap();
        assert!(state.node(number).is_none());
        assert!(state.note_node(&blob, id) && state.note_node(&blob, id));
        assert_eq!(state.node(number).unwrap().0, id);
        // As if its digest began like that of the other.
        let of = vec![Of::Hole { blocks: 16 }];
        let table = Table::new(of).unwrap();
        let other = Blob::open(directory.path(), table.digest(), || Ok(table.clone()));
        let other = Arc::new(other.unwrap());
        let other_id = FileId::of(other.data()).unwrap();
        state.nodes.insert(number, Some(other_id));
        state.blobs.insert(other_id, other);
        assert!(!state.note_node(&blob, id), "another has it");
        assert_eq!(state.node(number).unwrap().0, other_id, "which stays");
        state.nodes.insert(number, Some(id));
        assert!(state.note_node(&blob, id));
        state.nodes.insert(number, None);
        assert!(!state.note_node(&blob, id) && state.node(number).is_none());
        assert!(state.forget(other_id).is_empty());
        assert!(!state.note_node(&blob, id), "that one had another number");
        assert!(state.forget(id).is_empty());
        assert!(state.note_node(&blob, id), "nobody has it any more");
    }

    #[test]
    fn who_waits_for_what_nobody_fetches_yet_is_told_when_its_blob_goes() {
        let (_directory, mut state, id) = scene();
        let other = FileId { inode: 0, ..id };
        let now = Instant::now();
        for (number, file) in [(5, id), (6, other), (7, id)] {
            let number = Asker::Event(number);
            let request = Request {
                number,
                wants: None,
                slot: 0,
                keeps_number: None,
                read_by: ReadBy::This,
                since: now,
                bytes: 0,
                rounds: 0,
            };
            // A fetcher has what 7 waits for.
            let piece = (file, usize::from(number == Asker::Event(7)));
            state
                .requests
                .arrive(number, request, (Outcome::Here, Failing::Late), &[piece]);
            if number != Asker::Event(7) {
                state.wanted.push_back((piece, now));
            }
        }
        let answers = state.forget(id).into_iter();
        let answers: Vec<_> = answers.map(|one| (one.number, one.outcome)).collect();
        assert_eq!(answers, [(Asker::Event(5), Outcome::Failed)]);
        assert_eq!(indexes(state.wanted.iter().map(|(piece, _)| *piece)), [0]);
        assert_eq!(state.requests.fetched((id, 1), Outcome::Here).len(), 1);
    }

    #[test]
    fn what_cannot_be_written_yet_holds_up_nobody() {
        let (directory, mut state, id) = scene();
        let of = vec![Of::Chunk {
            id: ChunkId::of(&[9]),
            blocks: 1,
        }];
        let table = Table::new(of).unwrap();
        let blobs = directory.path();
        let watched = Blob::open_watched(blobs, table.digest(), || Ok(table.clone()));
        let watched = Arc::new(watched.unwrap());
        let other = FileId::of(watched.data()).unwrap();
        state.blobs.insert(other, Arc::clone(&watched));
        let now = Instant::now();
        state.wanted.extend([((other, 0), now), ((id, 1), now)]);
        state.ahead.extend([(other, 1), (id, 2)]);
        assert_eq!(state.next(), Some(((id, 1), Some(now))));
        assert_eq!(state.next(), Some(((id, 2), None)));
        assert_eq!(state.next(), None);
        watched.write_by_own().unwrap();
        assert_eq!(state.next(), Some(((other, 0), Some(now))));
        assert_eq!(state.next(), Some(((other, 1), None)));
    }

    #[test]
    fn slots_are_left_to_the_next_daemon_which_takes_them_until_it_knows_all_writers() {
        let (directory, mut state, id) = scene();
        state.kept_slots = 2;
        state.free.truncate(3);
        assert!(state.has_slot());
        state.free.truncate(2);
        assert!(!state.has_slot(), "for the next");
        let blob = state.blobs.remove(&id).unwrap();
        let watched = Blob::open_watched(directory.path(), blob.name(), || unreachable!());
        state.blobs.insert(id, Arc::new(watched.unwrap()));
        assert!(state.has_slot(), "by the next");
        state.free.clear();
        assert!(!state.has_slot());
    }

    #[test]
    fn what_follows_is_fetched_ahead_when_reads_follow_one_another() {
        let (_directory, mut state, id) = scene();
        state.read_ahead(id, 0, 1, 2);
        assert_eq!(state.ahead.len(), 0, "the first says nothing");
        state.read_ahead(id, 1, 1, 2);
        assert_eq!(indexes(state.ahead.clone()), [2]);
        state.read_ahead(id, 2, 1, 2);
        assert_eq!(indexes(state.ahead.clone()), [2, 4], "a hole needs nothing");
        state.read_ahead(id, 8, 1, 2);
        state.read_ahead(id, 4, 1, 2);
        assert_eq!(indexes(state.ahead.clone()), [2, 4], "elsewhere");
        state.read_ahead(id, 4, 1, 0);
        assert_eq!(indexes(state.ahead.clone()), [2, 4], "none are wanted");
        state.read_ahead(id, 4, 1, 64);
        assert_eq!(indexes(state.ahead.clone()), [2, 4, 5, 6, 7, 8]);
    }
}
