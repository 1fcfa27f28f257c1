//! The back end that works everywhere: all of a disk is fetched before it is mounted.

use std::{fs::File, sync::Arc};

use snapshot_core::Result;

use super::{Attach, Carrier, Kind, hide, own_files};
use crate::host::{
    blob::{Blob, Hidden, Source},
    lazy::Faults,
    opens::Reads,
};

/// Fetches everything.
#[derive(Debug)]
pub(in crate::host) struct Copy<S> {
    carrier: Carrier,
    source: Arc<S>,
    fetches_max: usize,
    /// What an earlier daemon has mounted before it was whole has its readers still.
    faults: Option<Faults>,
}

impl<S: Source> Copy<S> {
    /// From there, so many chunks at once.
    pub(in crate::host) fn new(
        carrier: Carrier,
        source: Arc<S>,
        fetches_max: usize,
        faults: Option<Faults>,
    ) -> Self {
        Self {
            carrier,
            source,
            fetches_max,
            faults,
        }
    }
}

impl<S: Source + Send + std::fmt::Debug> Attach for Copy<S> {
    fn kind(&self) -> Kind {
        Kind::Copy
    }

    fn carrier(&self) -> Carrier {
        self.carrier
    }

    fn opened(&self) -> Vec<Arc<Blob>> {
        self.faults.as_ref().map(Faults::opened).unwrap_or_default()
    }

    fn open(&self, blobs: &[Arc<Blob>]) -> Result<Vec<File>> {
        for blob in blobs {
            blob.fill_all(self.fetches_max, &*self.source)?;
            if let Some(faults) = &self.faults {
                faults.completed(blob);
            }
        }
        own_files(blobs)
    }

    fn settle(&self, _blobs: &[Arc<Blob>]) {}

    /// It may be read by loop devices, and nobody need tell of what is whole.
    fn reads(&self) -> Reads {
        Reads::Untold
    }

    fn hide<'a>(
        &self,
        blob: &'a Arc<Blob>,
        pieces: &[usize],
        mountings: u64,
    ) -> Result<Option<Hidden<'a>>> {
        hide(self.faults.as_ref(), blob, pieces, mountings)
    }

    fn forget(&self, blob: &Blob) {
        if let Some(faults) = &self.faults {
            faults.forget(blob);
        }
    }

    fn finish(&self) {
        if let Some(faults) = &self.faults {
            faults.finish();
        }
        self.source.close();
    }
}
