//! What is fetched along traces, before anybody reads it, as data: it fetches nothing. Readers go first; no more than so many are
//! fetched at once, and no faster than so many bytes a second.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use disk::Digest;

use super::{background::Pace, state::Piece};

/// When the cache has no room, it is looked at again after that.
const WITHOUT_ROOM: Duration = Duration::from_secs(10);

/// Pieces of disks, in the order in which they are fetched.
#[derive(Debug)]
pub(super) struct Prefetch {
    /// Disks that somebody uses, since they were mounted: of no others anything is fetched.
    following: BTreeSet<Digest>,
    pieces: VecDeque<(Digest, Piece)>,
    running: usize,
    fetches_max: usize,
    pace: Pace,
}

/// What is to be done about a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// It is not here.
    Missing,
    /// It is here, or its blob is not any more.
    Nothing,
    /// It cannot be written yet.
    Later,
}

impl Prefetch {
    /// Of nothing, so many at once and so fast.
    pub(super) fn new(fetches_max: usize, bytes_per_second: u64) -> Self {
        Self {
            following: BTreeSet::new(),
            pieces: VecDeque::new(),
            running: 0,
            fetches_max,
            pace: Pace::new(bytes_per_second),
        }
    }

    /// A disk is used from now on.
    pub(super) fn follow(&mut self, disk: Digest) {
        self.following.insert(disk);
    }

    /// These of a disk are fetched, too, if it is still used: whether it is.
    pub(super) fn push(&mut self, disk: Digest, pieces: impl IntoIterator<Item = Piece>) -> bool {
        let is_used = self.following.contains(&disk);
        if is_used {
            let pieces = pieces.into_iter().map(|piece| (disk, piece));
            self.pieces.extend(pieces);
        }
        is_used
    }

    /// Nothing more of a disk is fetched, before it is followed again: how many pieces would have been.
    pub(super) fn cancel(&mut self, disk: Digest) -> usize {
        self.following.remove(&disk);
        let before = self.pieces.len();
        self.pieces.retain(|(of, _)| *of != disk);
        before - self.pieces.len()
    }

    /// How many are to be fetched still.
    pub(super) fn len(&self) -> usize {
        self.pieces.len() + self.running
    }

    /// The next one, which is fetched from then on; else when there may be one, if that is known. `has_room` says whether the cache
    /// has room for what nobody reads.
    pub(super) fn next(
        &mut self,
        now: Instant,
        need: impl Fn(&Piece) -> Need,
        has_room: impl FnOnce() -> bool,
    ) -> Result<(Digest, Piece), Option<Instant>> {
        if self.running >= self.fetches_max {
            return Err(None);
        }
        let mut index = 0;
        loop {
            match self.pieces.get(index).map(|(_, piece)| need(piece)) {
                None => return Err(None),
                Some(Need::Nothing) => drop(self.pieces.remove(index)),
                Some(Need::Later) => index += 1,
                Some(Need::Missing) => break,
            }
        }
        let at = self.pace.at();
        if at > now {
            return Err(Some(at));
        }
        if !has_room() {
            return Err(Some(now + WITHOUT_ROOM));
        }
        let found = self.pieces.remove(index).expect("it was found there");
        self.running += 1;
        Ok(found)
    }

    /// One that was begun is here, or could not be had; so many bytes of it were fetched.
    pub(super) fn ended(&mut self, bytes: u64) {
        self.running -= 1;
        self.pace.took(bytes);
    }
}

#[cfg(test)]
mod tests {
    use sys::FileId;

    use super::*;

    fn piece(index: usize) -> Piece {
        (
            FileId {
                device: 1,
                inode: 2,
            },
            index,
        )
    }

    #[test]
    fn pieces_come_in_order_so_many_at_once_and_not_faster_than_they_may() {
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        let mut prefetch = Prefetch::new(2, 1 << 20);
        assert!(!prefetch.push(one, [9].map(piece)), "nobody uses it");
        prefetch.follow(one);
        prefetch.follow(other);
        assert!(prefetch.push(one, [0, 1, 2, 3].map(piece)));
        assert!(prefetch.push(other, [4].map(piece)));
        let now = Instant::now();
        let missing = |_: &Piece| Need::Missing;
        let need = |piece: &Piece| match piece.1 {
            0 => Need::Nothing,
            1 => Need::Later,
            _ => Need::Missing,
        };
        let room = || true;
        let later = prefetch.next(now, need, || false).unwrap_err().unwrap();
        assert!(later > now, "there is no room");
        assert_eq!(prefetch.next(now, need, room), Ok((one, piece(2))));
        assert_eq!(
            prefetch.next(now, missing, room),
            Ok((one, piece(1))),
            "0 is not looked at again"
        );
        let is_asked = || -> bool { unreachable!("nothing needs room") };
        assert_eq!(
            prefetch.next(now, missing, is_asked),
            Err(None),
            "two at once"
        );
        assert_eq!(prefetch.len(), 4);
        prefetch.ended(1 << 20);
        let at = prefetch.next(now, missing, room).unwrap_err().unwrap();
        assert!(at >= now + Duration::from_millis(900), "{:?}", at - now);
        assert_eq!(prefetch.next(at, missing, room), Ok((one, piece(3))));
        prefetch.ended(0);
        assert_eq!((prefetch.cancel(one), prefetch.cancel(other)), (0, 1));
        assert!(
            !prefetch.push(other, [4].map(piece)),
            "nobody does any more"
        );
        assert_eq!(prefetch.next(at, missing, is_asked), Err(None));
        prefetch.ended(0);
        assert_eq!(prefetch.len(), 0);
    }
}
