//! Takes chunks out of the cache: those of disks that nobody has mounted first, then what was used longest ago.
//!
//! A reader whom the kernel has let pass may read at any time after that, even much later, and where nothing is any more it
//! would read zeros. So a chunk goes in this order, and each step sees to it that the next is safe:
//!
//! 1. its blob is watched, and it is hidden: who begins to read now waits;
//! 2. the kernel has nothing of it in memory, in whatever mount: who was let pass before has room there for what it reads, from before
//!    it asked for it until it has read it;
//! 3. it goes from the map, which is synced, and only then from the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use mounts::mountinfo;
use nix::sys::stat::makedev;
use snapshot_core::{Error, Result};

use super::{
    attach::Attach,
    blob::Blob,
    mounted::{Memory, MountedFiles},
};

/// Chunks that are looked at together; as long as that takes, who wants them waits.
const AT_ONCE: usize = 1024;

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Evicted {
    /// Bytes.
    pub(super) bytes: u64,
    /// Chunks that had them.
    pub(super) chunks: usize,
}

/// What is gone about once.
#[derive(Debug)]
pub(super) struct Eviction<'a> {
    attach: &'a dyn Attach,
    /// Held while files of mounts are open here: an unmount meanwhile would leave them, and it would not be known when they are gone.
    looking: &'a Mutex<()>,
    /// Where disks are mounted, by device number.
    mounts: BTreeMap<u64, PathBuf>,
    /// Of those that were looked at; none where something could not be.
    files: BTreeMap<u64, Option<MountedFiles>>,
}

/// A chunk that may go.
#[derive(Debug, Clone)]
struct Candidate {
    blob: Arc<Blob>,
    index: usize,
    bytes: u64,
    is_mounted: bool,
    used: u64,
}

impl<'a> Eviction<'a> {
    /// By that back end.
    ///
    /// # Errors
    /// What keeps mounts from being read.
    pub(super) fn new(attach: &'a dyn Attach, looking: &'a Mutex<()>) -> Result<Self> {
        let entries = mountinfo::read().map_err(Error::io("read", "/proc/self/mountinfo"))?;
        // A mount of one directory has not all files.
        let disks = entries
            .into_iter()
            .filter(|entry| entry.fstype == "erofs" && entry.root == "/");
        let mounts = disks.map(|entry| {
            let (major, minor) = entry.device;
            let device = makedev(major.into(), minor.into());
            (device, PathBuf::from(entry.mount_point))
        });
        Ok(Self {
            attach,
            looking,
            mounts: mounts.collect(),
            files: BTreeMap::new(),
        })
    }

    /// Takes at least so many bytes out of these blobs, if that much may go before it is time to end.
    ///
    /// # Errors
    /// What keeps a chunk from being taken out; others may have gone.
    pub(super) fn take(
        &mut self,
        blobs: &[Arc<Blob>],
        wanted: u64,
        is_ending: impl Fn() -> bool,
    ) -> Result<Evicted> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for blob in blobs {
            self.add_candidates(blob, &mut candidates);
        }
        candidates.sort_by_key(|one| (one.is_mounted, one.used));
        let mut all = Evicted::default();
        for memory in [Memory::Kept, Memory::Dropped] {
            let mut busy = Vec::new();
            let mut rest = &candidates[..];
            while all.bytes < wanted && !rest.is_empty() && !is_ending() {
                let count = portion(rest, wanted - all.bytes);
                let (some, others) = rest.split_at(count);
                rest = others;
                let gone = self.take_some(some, memory, &mut busy)?;
                all.bytes += gone.bytes;
                all.chunks += gone.chunks;
            }
            candidates = busy;
        }
        Ok(all)
    }

    fn add_candidates(&self, blob: &Arc<Blob>, candidates: &mut Vec<Candidate>) {
        let Some(devices) = blob.told() else { return };
        // Of a mount that is not seen here it cannot be known who reads.
        if !devices
            .iter()
            .all(|device| self.mounts.contains_key(device))
        {
            return;
        }
        blob.find_more();
        let idle = blob.idle().into_iter();
        candidates.extend(idle.map(|idle| Candidate {
            blob: Arc::clone(blob),
            index: idle.index,
            bytes: blob.piece_bytes(idle.index),
            is_mounted: !devices.is_empty(),
            used: idle.used,
        }));
    }

    /// Sees to it that no mount has a chunk in memory any more: whether that is so.
    pub(super) fn forget_in_memory(&mut self, blob: &Arc<Blob>, index: usize) -> bool {
        let _looks = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(devices) = blob.told() else {
            return false;
        };
        for device in &devices {
            self.look_at(*device);
        }
        self.is_idle(blob, index, &devices, Memory::Dropped)
    }

    fn take_some(
        &mut self,
        some: &[Candidate],
        memory: Memory,
        busy: &mut Vec<Candidate>,
    ) -> Result<Evicted> {
        let names: BTreeSet<[u8; 32]> = some.iter().map(|one| one.blob.name()).collect();
        let mut all = Evicted::default();
        for name in names {
            let of = some.iter().filter(|one| one.blob.name() == name);
            let of: Vec<&Candidate> = of.collect();
            let pieces: Vec<usize> = of.iter().map(|one| one.index).collect();
            let (gone, left) = self.take_of(&of[0].blob, &pieces, memory)?;
            all.bytes += gone.bytes;
            all.chunks += gone.chunks;
            busy.extend(
                of.into_iter()
                    .filter(|one| left.contains(&one.index))
                    .cloned(),
            );
        }
        Ok(all)
    }

    /// What went of these chunks of a blob, and which are in use.
    fn take_of(
        &mut self,
        blob: &Arc<Blob>,
        pieces: &[usize],
        memory: Memory,
    ) -> Result<(Evicted, BTreeSet<usize>)> {
        let _looks = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let mountings = blob.mountings();
        let Some(devices) = blob.told() else {
            return Ok(Default::default());
        };
        for device in &devices {
            self.look_at(*device);
        }
        let is_idle = |index: usize| self.is_idle(blob, index, &devices, memory);
        let (idle, mut busy): (Vec<usize>, BTreeSet<usize>) = {
            let (idle, busy): (Vec<usize>, Vec<usize>) =
                pieces.iter().partition(|index| is_idle(**index));
            (idle, busy.into_iter().collect())
        };
        if idle.is_empty() {
            return Ok((Evicted::default(), busy));
        }
        let gone = match self.attach.hide(blob, &idle, mountings)? {
            Some(mut hidden) => {
                hidden.spare(|index| !is_idle(index));
                busy.extend(idle.iter().filter(|index| !hidden.pieces().contains(index)));
                let (bytes, chunks) = hidden.take_away()?;
                Evicted { bytes, chunks }
            }
            None => Evicted::default(),
        };
        // If all was spared, it is whole still.
        self.attach.settle(std::slice::from_ref(blob));
        Ok((gone, busy))
    }

    /// Whether nobody reads a chunk, and nobody has it in memory.
    fn is_idle(&self, blob: &Blob, index: usize, devices: &[u64], memory: Memory) -> bool {
        let range = blob.range_of(index);
        devices.iter().all(|device| {
            let files = self.files.get(device).and_then(Option::as_ref);
            files.is_some_and(|files| files.are_idle(&range, memory).unwrap_or(false))
        })
    }

    fn look_at(&mut self, device: u64) {
        let mounts = &self.mounts;
        self.files.entry(device).or_insert_with(|| {
            let path: &Path = mounts.get(&device)?;
            let files = MountedFiles::of(path, device);
            files
                .inspect_err(|error| {
                    let path = path.display();
                    tracing::warn!(%path, %error, "nothing of a disk can go, as its files cannot be looked at");
                })
                .ok()
        });
    }
}

/// How many of these make up so many bytes.
fn portion(candidates: &[Candidate], wanted: u64) -> usize {
    let mut bytes = 0;
    let few = candidates.iter().take(AT_ONCE);
    let few = few.take_while(|one| {
        let is_needed = bytes < wanted;
        bytes += one.bytes;
        is_needed
    });
    few.count()
}
