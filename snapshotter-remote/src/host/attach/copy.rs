//! The back end that works everywhere: all of a disk is fetched before it is mounted.

use std::sync::Arc;

use snapshot_core::Result;

use super::{Attach, Carrier, Kind};
use crate::host::blob::{Blob, Source};

/// Fetches everything.
#[derive(Debug)]
pub(in crate::host) struct Copy<S> {
    carrier: Carrier,
    source: Arc<S>,
    fetches_max: usize,
}

impl<S: Source> Copy<S> {
    /// From there, so many chunks at once.
    pub(in crate::host) fn new(carrier: Carrier, source: Arc<S>, fetches_max: usize) -> Self {
        Self {
            carrier,
            source,
            fetches_max,
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

    fn open(&self, blobs: &[Arc<Blob>]) -> Result<()> {
        for blob in blobs {
            blob.fill_all(self.fetches_max, &*self.source)?;
        }
        Ok(())
    }
}
