//! The back end that fetches what is read, when it is read, where the kernel cannot tell of reads: who reads asks the daemon.

use std::{fs::File, sync::Arc};

use disk::Digest;
use snapshot_core::Result;

use super::{Attach, Carrier, Kind, hide};
use crate::host::{
    blob::{Blob, Hidden},
    lazy::{Faults, MountedDisk},
    opens::Reads,
};

/// Gives who reads what is read.
#[derive(Debug)]
pub(in crate::host) struct Fuse {
    carrier: Carrier,
    faults: Faults,
}

impl Fuse {
    /// With those who answer readers, which serve.
    pub(in crate::host) fn new(carrier: Carrier, faults: Faults) -> Self {
        Self { carrier, faults }
    }
}

impl Attach for Fuse {
    fn kind(&self) -> Kind {
        Kind::Fuse
    }

    fn carrier(&self) -> Carrier {
        self.carrier
    }

    fn opened(&self) -> Vec<Arc<Blob>> {
        self.faults.opened()
    }

    fn open(&self, blobs: &[Arc<Blob>]) -> Result<Vec<File>> {
        self.faults.files(blobs)
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
        Reads::Served
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
