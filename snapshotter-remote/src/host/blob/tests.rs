//! A blob is what its table says, whatever happens meanwhile.

use std::sync::atomic::AtomicBool;

use super::*;

/// Chunks by what is in them, each of one byte again and again.
#[derive(Debug, Default)]
struct Chunks {
    asked: Mutex<Vec<ChunkId>>,
    fails: AtomicBool,
    wrote: AtomicU64,
}

fn contents(value: u8, blocks: u32) -> Vec<u8> {
    vec![value; blocks as usize * 4096]
}

impl Source for Chunks {
    fn chunk(&self, id: ChunkId, blocks: u32, _patience: Patience) -> Result<Vec<u8>> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::Unavailable("in this test".to_owned()));
        }
        self.asked.lock().unwrap().push(id);
        let all = (0..=u8::MAX).map(|value| contents(value, blocks));
        let found = all.into_iter().find(|bytes| ChunkId::of(bytes) == id);
        Ok(found.expect("one of them"))
    }

    fn close(&self) {
        self.fails.store(true, Ordering::Relaxed);
    }

    fn make_room(&self, _bytes: u64) -> bool {
        false
    }

    fn wrote(&self, bytes: u64) {
        self.wrote.fetch_add(bytes, Ordering::Relaxed);
    }

    fn has_room(&self) -> bool {
        true
    }
}

impl Chunks {
    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn table() -> Table {
    let chunk = |value, blocks| Piece::Chunk {
        id: ChunkId::of(&contents(value, blocks)),
        blocks,
    };
    let hole = Piece::Hole { blocks: 20 };
    Table::new(vec![chunk(1, 16), chunk(2, 20), hole, chunk(3, 1)]).unwrap()
}

fn open(at: &Path) -> Blob {
    Blob::open(at, table().digest(), || Ok(table())).unwrap()
}

fn byte_at(blob: &Blob, block: u64) -> u8 {
    let mut byte = [0];
    blob.data().read_exact_at(&mut byte, block * 4096).unwrap();
    byte[0]
}

fn missing(blob: &Blob) -> usize {
    blob.lock().missing
}

#[test]
fn what_is_there_is_what_the_table_says_and_was_fetched_once() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let chunks = Chunks::default();
    blob.fill_piece(1, &chunks, Patience::Once).unwrap();
    blob.fill_piece(2, &chunks, Patience::Once).unwrap();
    assert_eq!((missing(&blob), chunks.count()), (2, 1));
    let bytes = [15, 16, 35, 40].map(|block| byte_at(&blob, block));
    assert_eq!(bytes, [0, 2, 2, 0]);
    blob.fill_all(4, &chunks).unwrap();
    blob.fill_all(4, &chunks).unwrap();
    assert_eq!((missing(&blob), chunks.count()), (0, 3));
    let bytes = [15, 16, 40, 56].map(|block| byte_at(&blob, block));
    assert_eq!(bytes, [1, 2, 0, 3]);
    let about = blob.data().metadata().unwrap();
    assert_eq!(about.len(), 57 * 4096);
    assert!(
        blob.allocated_bytes().unwrap() <= 38 * 4096,
        "a hole takes no room"
    );
}

#[test]
fn pieces_of_a_range_are_those_that_it_touches_and_that_are_missing() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let check = |blocks: Range<u64>, expected: &[usize]| {
        let bytes = blocks.start * 4096..blocks.end * 4096;
        assert_eq!(blob.missing_in(bytes), expected, "{blocks:?}");
    };
    check(0..1, &[0]);
    check(15..16, &[0]);
    check(15..17, &[0, 1]);
    check(16..16, &[]);
    check(36..56, &[]);
    check(0..1_000_000, &[0, 1, 3]);
    check(56..57, &[3]);
    check(57..58, &[]);
    assert_eq!(blob.missing_in(56 * 4096 + 1..56 * 4096 + 2), [3]);
    blob.fill_piece(1, &Chunks::default(), Patience::Once)
        .unwrap();
    check(15..17, &[0]);
    assert_eq!(blob.first_missing(1..9), Some(3));
    assert_eq!(blob.first_missing(1..3), None);
    assert!(!blob.is_whole());
    assert_eq!(blob.piece_bytes(1), 20 * 4096);
}

#[test]
fn what_was_synced_is_there_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let chunks = Chunks::default();
    let blob = open(directory.path());
    blob.fill_piece(0, &chunks, Patience::Once).unwrap();
    blob.sync().unwrap();
    blob.fill_piece(1, &chunks, Patience::Once).unwrap();
    drop(blob);
    let blob = open(directory.path());
    assert_eq!(missing(&blob), 2, "what was not synced counts not");
    blob.fill_all(4, &chunks).unwrap();
    assert_eq!(chunks.count(), 3, "and is found where it was written");
    drop(blob);
    // Something else than was written, as after a loss of power.
    let path = directory.path().join(Digest(table().digest()).to_string());
    std::fs::remove_file(path.join("map")).unwrap();
    let file = OpenOptions::new().write(true).open(path.join("data"));
    file.unwrap().write_all_at(&[9], 4096 * 20).unwrap();
    let blob = open(directory.path());
    blob.fill_all(4, &chunks).unwrap();
    assert_eq!((chunks.count(), byte_at(&blob, 20)), (4, 2));
    drop(blob);
    assert_eq!(missing(&open(directory.path())), 0);
    let name = table().digest();
    assert_eq!(look(directory.path(), name).unwrap(), Some((3, 3)));
    // Another file is not what the map was of.
    let data = directory.path().join(Digest(name).to_string()).join("data");
    std::fs::write(data, "").unwrap();
    assert_eq!(missing(&open(directory.path())), 3);
}

#[test]
fn a_failure_is_told_and_what_came_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let chunks = Chunks::default();
    blob.fill_piece(0, &chunks, Patience::Once).unwrap();
    chunks.fails.store(true, Ordering::Relaxed);
    let error = blob.fill_all(2, &chunks).unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(missing(&blob), 2);
    chunks.fails.store(false, Ordering::Relaxed);
    blob.fill_all(2, &chunks).unwrap();
    assert_eq!(missing(&blob), 0);
}

#[test]
fn many_who_want_the_same_fetch_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let chunks = Chunks::default();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| blob.fill_all(4, &chunks).unwrap());
        }
    });
    assert_eq!(chunks.count(), 3);
}

#[test]
fn a_chunk_that_has_gone_is_fetched_again_and_who_wants_a_hidden_one_waits() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let chunks = Chunks::default();
    blob.fill_all(1, &chunks).unwrap();
    let before = blob.allocated_bytes().unwrap();
    let used: Vec<usize> = blob.idle().iter().map(|idle| idle.index).collect();
    assert_eq!(used, [0, 1, 3]);
    assert!(blob.missing_in(0..1).is_empty());
    assert!(blob.idle()[0].used > blob.idle()[2].used, "by a read");
    let mut hidden = blob.hide(&[0, 1, 2, 3], blob.mountings()).unwrap();
    assert_eq!(hidden.pieces(), [0, 1, 3], "a hole is nothing");
    assert_eq!((missing(&blob), blob.idle().len()), (3, 0));
    hidden.spare(|index| index == 1);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| blob.fill_piece(0, &chunks, Patience::Once));
        let gone = hidden.take_away().unwrap();
        assert_eq!(gone, (17 * 4096, 2));
        waits.join().unwrap().unwrap();
    });
    assert_eq!((missing(&blob), chunks.count()), (1, 4));
    let bytes = [0, 16, 56].map(|block| byte_at(&blob, block));
    assert_eq!(bytes, [1, 2, 0]);
    assert!(blob.allocated_bytes().unwrap() < before);
    let wrote = chunks.wrote.load(Ordering::Relaxed);
    assert_eq!(wrote, (37 + 16) * 4096);
    drop(blob);
    // As after a crash at once: the map has nothing that has gone.
    let blob = open(directory.path());
    assert_eq!(blob.missing_in(0..57 * 4096), [0, 3]);
    blob.fill_all(1, &chunks).unwrap();
    assert_eq!(byte_at(&blob, 56), 3);
}

#[test]
fn what_was_written_and_not_written_down_is_found_and_what_is_half_there_goes() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    blob.fill_piece(0, &Chunks::default(), Patience::Once)
        .unwrap();
    blob.data().write_all_at(&[3; 100], 56 * 4096).unwrap();
    let before = blob.allocated_bytes().unwrap();
    drop(blob);
    let blob = open(directory.path());
    blob.find_more();
    blob.find_more();
    assert_eq!(blob.missing_in(0..57 * 4096), [1, 3]);
    assert_eq!(blob.idle().len(), 1);
    assert_eq!((byte_at(&blob, 0), byte_at(&blob, 56)), (1, 0));
    assert!(blob.allocated_bytes().unwrap() < before);
}

#[test]
fn nothing_goes_while_a_blob_is_being_mounted_or_was_since_it_was_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    blob.fill_all(1, &Chunks::default()).unwrap();
    let before = blob.mountings();
    let mounting = blob.begin_mounting();
    assert!(blob.is_being_mounted());
    assert!(blob.hide(&[0], blob.mountings()).is_none());
    drop(mounting);
    assert!(blob.hide(&[0], before).is_none());
    let hidden = blob.hide(&[0], blob.mountings()).unwrap();
    drop(hidden);
    assert!(blob.is_whole(), "what is not taken away is there again");
    assert_eq!(byte_at(&blob, 0), 1);
}

#[test]
fn what_was_given_up_stays_in_the_file_until_something_else_is_written_there() {
    let directory = tempfile::tempdir().unwrap();
    let chunks = Chunks::default();
    open(directory.path()).fill_all(1, &chunks).unwrap();
    // Of an earlier daemon, so that more is looked for.
    let blob = open(directory.path());
    blob.data().write_all_at(&[9], 20 * 4096).unwrap();
    assert_eq!(blob.is_right(1).unwrap(), Some(false));
    let hidden = blob.hide(&[1], blob.mountings()).unwrap();
    hidden.give_up().unwrap();
    chunks.fails.store(true, Ordering::Relaxed);
    blob.fill_piece(1, &chunks, Patience::Once).unwrap_err();
    // As for want of room when the cache is full, and as when a write fails.
    blob.find_more();
    blob.clear(1);
    let bytes = [16, 20, 35].map(|block| byte_at(&blob, block));
    assert_eq!((missing(&blob), bytes), (1, [2, 9, 2]));
    chunks.fails.store(false, Ordering::Relaxed);
    blob.fill_piece(1, &chunks, Patience::Once).unwrap();
    assert_eq!((missing(&blob), byte_at(&blob, 20)), (0, 2));
    assert!(blob.lock().given_up.is_empty());
}

#[test]
fn what_another_has_in_hand_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let chunks = Chunks::default();
    blob.fill_all(1, &chunks).unwrap();
    blob.data().write_all_at(&[9], 20 * 4096).unwrap();
    let hidden = blob.hide(&[1], blob.mountings()).unwrap();
    assert!(!blob.replace(1, &chunks).unwrap());
    assert_eq!((chunks.count(), byte_at(&blob, 20)), (3, 9));
    drop(hidden);
    assert!(blob.replace(1, &chunks).unwrap());
    assert_eq!((chunks.count(), byte_at(&blob, 20)), (4, 2));
}

#[test]
fn a_reader_is_given_all_or_nothing_and_never_what_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let chunks = Chunks::default();
    let mut bytes = vec![9; 2 * 4096];
    // Half of it lies in the next chunk.
    let at = 15 * 4096;
    blob.fill_piece(0, &chunks, Patience::Once).unwrap();
    assert!(!blob.read_here(at, &mut bytes).unwrap());
    blob.fill_piece(1, &chunks, Patience::Once).unwrap();
    assert!(blob.read_here(at, &mut bytes).unwrap());
    assert_eq!(bytes, [contents(1, 1), contents(2, 1)].concat());
    // A hole is zeros by the table.
    assert!(blob.read_here(36 * 4096, &mut bytes).unwrap());
    assert_eq!(bytes, contents(0, 2));
    let hidden = blob.hide(&[0], blob.mountings()).unwrap();
    assert!(!blob.read_here(at, &mut bytes).unwrap());
    hidden.take_away().unwrap();
    assert!(!blob.read_here(at, &mut bytes).unwrap());
    assert!(blob.read_here(at + 4096, &mut bytes).unwrap());
}

#[test]
fn chunks_go_and_come_while_they_are_given_and_nobody_is_given_a_hole() {
    let directory = tempfile::tempdir().unwrap();
    let blob = open(directory.path());
    let chunks = Chunks::default();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut bytes = vec![0; 16 * 4096];
                while !is_over.load(Ordering::Relaxed) {
                    if blob.read_here(0, &mut bytes).unwrap() {
                        assert_eq!(bytes, contents(1, 16));
                    }
                }
            });
        }
        for _ in 0..200 {
            blob.fill_piece(0, &chunks, Patience::Once).unwrap();
            let hidden = blob.hide(&[0], blob.mountings()).unwrap();
            assert_eq!(hidden.take_away().unwrap().1, 1);
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
