//! Memory that several processes have, one after the other: slots into which the kernel writes what it tells in read(2), so that who
//! comes next finds what the one before had read. It belongs to who has its descriptor, so it outlives the process that reads.

use std::ffi::{CStr, c_void};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use crate::fd::memfd;

/// Words of 8 bytes that a slot has.
pub(crate) const SLOT_WORDS: usize = 16;

/// Bytes of a slot.
pub(crate) const SLOT_BYTES: usize = SLOT_WORDS * 8;

/// The slots, mapped. Their pages are there and are not swapped out, so that the kernel never has to wait for one while it
/// writes into it.
#[derive(Debug)]
pub(crate) struct SharedSlots {
    memory: OwnedFd,
    base: *mut AtomicU64,
    slots: usize,
}

// SAFETY: the mapping belongs to the value, and everybody looks at it by atomic loads and stores.
unsafe impl Send for SharedSlots {}
// SAFETY: as above.
unsafe impl Sync for SharedSlots {}

impl SharedSlots {
    /// So many, all zeros, in memory of that name.
    ///
    /// # Errors
    /// ENOMEM, among others, when it is more than RLIMIT_MEMLOCK allows.
    pub(crate) fn new(name: &CStr, slots: usize) -> io::Result<Self> {
        let memory = memfd(name)?;
        let bytes = i64::try_from(slots * SLOT_BYTES).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&memory, bytes)?;
        Self::open(memory)
    }

    /// Those that another process made.
    ///
    /// # Errors
    /// As [`SharedSlots::new`], and `InvalidData` for a file that has none.
    pub(crate) fn open(memory: OwnedFd) -> io::Result<Self> {
        let length = nix::sys::stat::fstat(&memory)?.st_size;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let slots = length / SLOT_BYTES;
        if slots == 0 || length % SLOT_BYTES != 0 {
            let why = "it is no journal";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let base = map(&memory, length)?;
        Ok(Self {
            memory,
            base: base.cast(),
            slots,
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots
    }

    /// Where the kernel writes: [`SLOT_BYTES`].
    pub(crate) fn place(&self, slot: usize) -> *mut c_void {
        self.words(slot).as_ptr().cast_mut().cast()
    }

    /// What is in a slot, and what can be put there.
    pub(crate) fn words(&self, slot: usize) -> &[AtomicU64] {
        assert!(slot < self.slots, "a slot of this journal");
        // SAFETY: the slot lies within the mapping.
        let first = unsafe { self.base.add(slot * SLOT_WORDS) };
        // SAFETY: the mapping is aligned, stays as long as `self`, and whoever writes to it does so by atomics, or is the
        // kernel in a read(2) of the process that uses the slot.
        unsafe { std::slice::from_raw_parts(first, SLOT_WORDS) }
    }
}

impl AsFd for SharedSlots {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for SharedSlots {
    fn drop(&mut self) {
        // SAFETY: it was mapped with that length by `map`, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.cast(), self.slots * SLOT_BYTES) };
    }
}

/// All of it, shared, its pages held in memory.
fn map(memory: &OwnedFd, length: usize) -> io::Result<*mut c_void> {
    use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap};

    let length = NonZeroUsize::new(length).expect("it has slots");
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
    // SAFETY: a new mapping at a place that the kernel chooses.
    let base = unsafe { mmap(None, length, rights, flags, memory, 0) }?;
    // SAFETY: the range is the mapping that was just made.
    let locked = unsafe { mlock(base, length.get()) };
    if let Err(errno) = locked {
        // SAFETY: as above; nobody has seen it yet.
        unsafe { libc::munmap(base.as_ptr(), length.get()) };
        return Err(errno.into());
    }
    Ok(base.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memory_of_whole_slots_is_opened() {
        let memory = memfd(c"another").unwrap();
        for length in [0, 100] {
            nix::unistd::ftruncate(&memory, length).unwrap();
            let error = SharedSlots::open(memory.try_clone().unwrap()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        nix::unistd::ftruncate(&memory, 256).unwrap();
        assert_eq!(SharedSlots::open(memory).unwrap().len(), 2);
    }
}
