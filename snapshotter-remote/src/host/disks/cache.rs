//! The disks as a cache: what they take of the host's disk, and what goes of it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, PoisonError},
};

use disk::Digest;
use snapshot_core::{Error as CoreError, Result as CoreResult, one_line};

use super::{BLOBS, DISKS, Disks, Left, METADATA, directories};
use crate::{
    host::{
        blob::Blob,
        detach::{self, Detached},
        eviction::{Evicted, Eviction},
        files,
        opens::Opens,
        pins,
    },
    signature,
};

impl Disks {
    /// Unmounts what is mounted at a directory. A disk that is gone then, as nobody else had it, has its blobs open no more.
    pub(in crate::host) fn detach(
        &self,
        chain_id: Option<Digest>,
        target: &Path,
    ) -> CoreResult<()> {
        // First: who looks may take long, and mounts wait for the other alone.
        let _nobody_looks = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut leaving = self.opening();
        self.note_gone(&mut leaving, None)?;
        let detached = detach::detach(target)?;
        if matches!(detached, Detached::Stays) {
            return Ok(());
        }
        let manifest = chain_id.map(|chain_id| self.kept(chain_id));
        let Some(Ok(Some((manifest, _)))) = manifest else {
            return Ok(());
        };
        let blobs = manifest.devices.iter().map(|device| device.table);
        let blobs: Vec<[u8; 32]> = blobs.collect();
        match detached {
            Detached::Gone(device) => self.note_closed(&blobs, device)?,
            Detached::Leaving(disk) => {
                tracing::warn!(
                    target = %target.display(),
                    "a disk is unmounted, and goes when who reads of it is answered"
                );
                leaving.push((disk, blobs));
            }
            Detached::Stays => {}
        }
        Ok(())
    }

    /// What was unmounted earlier may have gone since; it has when its number is given to another.
    pub(super) fn note_gone(&self, leaving: &mut Vec<Left>, given: Option<u64>) -> CoreResult<()> {
        let all = std::mem::take(leaving).into_iter();
        let mut closed = Ok(());
        for (mut disk, blobs) in all {
            let is_gone = match given == Some(disk.device) {
                true => Some(true),
                false => disk.is_gone(),
            };
            match is_gone {
                Some(true) => closed = closed.and(self.note_closed(&blobs, disk.device)),
                Some(false) => {}
                None => leaving.push((disk, blobs)),
            }
        }
        closed
    }

    fn note_closed(&self, blobs: &[[u8; 32]], device: u64) -> CoreResult<()> {
        for name in blobs {
            let blob = self.known_blobs().get(name).cloned();
            match blob {
                Some(blob) => blob.was_closed(device)?,
                None => Opens::close(&self.blobs_directory(), *name, device)?,
            }
        }
        Ok(())
    }

    /// Takes at least so many bytes out of the cache, if that much may go: also from under mounts, and nothing that is pinned.
    pub(in crate::host) fn evict(&self, wanted: u64) -> CoreResult<Evicted> {
        self.note_gone(&mut self.opening(), None)?;
        let blobs = self.evictable()?;
        let is_ending = || self.fetcher.room.is_ending();
        let gone = Eviction::new(&*self.attach, &self.looking)?.take(&blobs, wanted, is_ending)?;
        self.measured.evicted(gone.bytes, gone.chunks);
        tracing::debug!(
            wanted,
            bytes = gone.bytes,
            chunks = gone.chunks,
            "taken out of the cache"
        );
        Ok(gone)
    }

    /// All blobs that are not pinned.
    fn evictable(&self) -> CoreResult<Vec<Arc<Blob>>> {
        let pinned = self.pinned_blobs()?;
        // None is removed meanwhile, or it would be made again.
        let _stay = self.uses();
        let found = directories(&self.blobs_directory())?.into_iter();
        let found = found.filter(|(_, name)| !pinned.contains(&name.0));
        // One whose table is damaged is nobody's.
        let missing = || Err(CoreError::DataLoss("its table is damaged".to_owned()));
        Ok(found
            .filter_map(|(_, name)| self.blob_with(name.0, missing).ok())
            .collect())
    }

    pub(super) fn pinned_blobs(&self) -> CoreResult<BTreeSet<[u8; 32]>> {
        let mut blobs = BTreeSet::new();
        for chain_id in pins::pinned(&self.root)? {
            let needed = self.blobs_that_stay(chain_id, "is pinned (`unpin` lets it go)")?;
            blobs.extend(needed);
        }
        Ok(blobs)
    }

    /// Those of a disk that stays for that reason, also by a key that is trusted no more: more stays than must.
    pub(super) fn blobs_that_stay(&self, chain_id: Digest, why: &str) -> CoreResult<Vec<[u8; 32]>> {
        let path = self.disk(chain_id).join("manifest");
        let Some(bytes) = files::read(&path, signature::BYTES_MAX)? else {
            return Ok(Vec::new());
        };
        let manifest = signature::open_unverified(&bytes, chain_id).map_err(|error| {
            CoreError::DataLoss(format!(
                "nothing goes from the cache, as disk sha256:{chain_id} {why}, and what it needs is not known: {}",
                one_line(&error)
            ))
        })?;
        let devices = manifest.devices.iter();
        Ok(devices.map(|device| device.table).collect())
    }

    /// Something has gone: finds out how much room there is for what nobody has asked for.
    pub(super) fn measure(&self) {
        if let Ok(used) = self.bytes() {
            self.fetcher.room.measured(used);
        }
    }

    /// What the cache takes of the host's disk.
    pub(in crate::host) fn bytes(&self) -> CoreResult<u64> {
        let bytes = cache_bytes(&self.root)?;
        self.measured.cache(bytes);
        Ok(bytes)
    }
}

/// What blobs and metadata below a root take of its disk.
pub(in crate::host) fn cache_bytes(root: &Path) -> CoreResult<u64> {
    let mut bytes = 0;
    for (kind, file) in [(BLOBS, "data"), (DISKS, METADATA)] {
        for (directory, _) in directories(&root.join(kind))? {
            // What is not there, or goes meanwhile, takes nothing.
            bytes += fs::metadata(directory.join(file)).map_or(0, |about| about.blocks() * 512);
        }
    }
    Ok(bytes)
}
