//! Memory in which events of [`PreContent`](crate::PreContent) stand from when they are read until they are answered. It belongs to who has
//! its descriptor, so it outlives the process that reads them. One process at a time reads into it.
//!
//! ```text
//!  a slot, 128 bytes     0  struct fanotify_event_metadata, as the kernel writes it; all zeros: the slot is free
//!                       24  struct fanotify_event_info_range
//!                       64  device, inode of the file, written by who has read the event; inode 0: it was not any more
//! ```

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pre_content::FileId;
use crate::shared_slots::SharedSlots;

/// Room for one event with its range (48 bytes), and not for two.
pub(crate) const EVENT_BYTES: usize = 64;

/// Where the file stands.
const DEVICE: usize = 8;
const INODE: usize = 9;

/// `FAN_EVENT_INFO_TYPE_RANGE` of linux/fanotify.h.
const RANGE: u8 = 6;

/// `FANOTIFY_METADATA_VERSION` of linux/fanotify.h.
const VERSION: u8 = 3;

/// The journal, mapped.
#[derive(Debug)]
pub struct EventJournal {
    slots: SharedSlots,
}

/// An event that a process had read and not answered when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Where it stands.
    pub slot: usize,
    /// What its answer goes to.
    pub number: RawFd,
    /// The first byte that is read, and how many; none when the kernel did not say.
    pub range: Option<(u64, u64)>,
    /// Of which file; none when the process was killed before it wrote that down.
    pub file: Option<FileId>,
}

/// What the kernel wrote.
pub(crate) struct Event {
    pub(crate) number: RawFd,
    pub(crate) pid: i32,
    pub(crate) range: Option<(u64, u64)>,
}

impl EventJournal {
    /// An empty one for so many events.
    ///
    /// # Errors
    /// ENOMEM, among others, when it is more than RLIMIT_MEMLOCK allows.
    pub fn new(slots: usize) -> io::Result<Self> {
        let slots = SharedSlots::new(c"fanotify-journal", slots)?;
        Ok(Self { slots })
    }

    /// The one that another process made.
    ///
    /// # Errors
    /// As [`EventJournal::new`], and `InvalidData` for a file that is none.
    pub fn open(memory: OwnedFd) -> io::Result<Self> {
        let slots = SharedSlots::open(memory)?;
        Ok(Self { slots })
    }

    /// How many events it has room for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Says that an event was answered, or was none: its slot is free. A process that is killed in between leaves an event of
    /// no known file, which is answered once more.
    pub fn clear(&self, slot: usize) {
        let words = self.words(slot);
        words[INODE].store(0, Ordering::Release);
        words[0].store(0, Ordering::Release);
    }

    /// All events that were not answered.
    #[must_use]
    pub fn owed(&self) -> Vec<Owed> {
        let owed = |slot| {
            let event = self.event(slot)?;
            let words = self.words(slot);
            let inode = words[INODE].load(Ordering::Acquire);
            let device = words[DEVICE].load(Ordering::Acquire);
            Some(Owed {
                slot,
                number: event.number,
                range: event.range,
                file: (inode != 0).then_some(FileId { device, inode }),
            })
        };
        (0..self.slots()).filter_map(owed).collect()
    }

    /// Writes down which file an event is of.
    pub(crate) fn name(&self, slot: usize, file: FileId) {
        let words = self.words(slot);
        words[DEVICE].store(file.device, Ordering::Release);
        words[INODE].store(file.inode, Ordering::Release);
    }

    /// Where the kernel writes an event: [`EVENT_BYTES`].
    pub(crate) fn place(&self, slot: usize) -> *mut c_void {
        self.slots.place(slot)
    }

    /// What is in a slot that is not free.
    pub(crate) fn event(&self, slot: usize) -> Option<Event> {
        let words: Vec<[u8; 8]> = self.words(slot)[..6]
            .iter()
            .map(|word| word.load(Ordering::Acquire).to_ne_bytes())
            .collect();
        let int = |bytes: &[u8]| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let event_bytes = int(&words[0][..4]);
        if event_bytes == 0 || words[0][4] != VERSION {
            return None;
        }
        let has_range = event_bytes >= 48 && words[3][0] == RANGE;
        Some(Event {
            number: int(&words[2][..4]),
            pid: int(&words[2][4..]),
            range: has_range.then(|| (u64::from_ne_bytes(words[4]), u64::from_ne_bytes(words[5]))),
        })
    }

    fn words(&self, slot: usize) -> &[AtomicU64] {
        self.slots.words(slot)
    }
}

impl AsFd for EventJournal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.slots.as_fd()
    }
}
