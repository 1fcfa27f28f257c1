//! The back end that fetches what is read, when it is read.

use std::{fs::File, sync::Arc};

use disk::Digest;
use snapshot_core::Result;

use super::{Attach, Carrier, Kind, hide, own_files};
use crate::host::{
    blob::{Blob, Hidden},
    lazy::{Faults, MountedDisk},
    opens::Reads,
};

/// Fetches what is read.
#[derive(Debug)]
pub(in crate::host) struct Lazy {
    faults: Faults,
}

impl Lazy {
    /// With those who answer readers.
    pub(in crate::host) fn new(faults: Faults) -> Self {
        Self { faults }
    }
}

impl Attach for Lazy {
    fn kind(&self) -> Kind {
        Kind::Lazy
    }

    /// The kernel tells of reads by files, not of those by loop devices.
    fn carrier(&self) -> Carrier {
        Carrier::Files
    }

    fn opened(&self) -> Vec<Arc<Blob>> {
        self.faults.opened()
    }

    fn open(&self, blobs: &[Arc<Blob>]) -> Result<Vec<File>> {
        blobs.iter().try_for_each(|blob| self.faults.watch(blob))?;
        own_files(blobs)
    }

    fn settle(&self, blobs: &[Arc<Blob>]) {
        let whole = blobs.iter().filter(|blob| blob.is_whole());
        whole.for_each(|blob| self.faults.completed(blob));
    }

    fn mounted(&self, disk: MountedDisk) {
        self.faults.mounted(disk);
    }

    fn unused(&self, disk: Digest) {
        self.faults.unused(disk);
    }

    fn reads(&self) -> Reads {
        Reads::Told
    }

    fn hide<'a>(
        &self,
        blob: &'a Arc<Blob>,
        pieces: &[usize],
        mountings: u64,
    ) -> Result<Option<Hidden<'a>>> {
        hide(Some(&self.faults), blob, pieces, mountings)
    }

    fn forget(&self, blob: &Blob) {
        self.faults.forget(blob);
    }

    fn finish(&self) {
        self.faults.finish();
    }
}
