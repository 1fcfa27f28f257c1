//! What disks a store has.

use disk::{BLOCK_BYTES, Digest};

use super::Store;
use crate::error::Result;

/// A disk of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub chain_id: Digest,
    /// How many layers it has.
    pub layers: usize,
    /// Length of its metadata in bytes.
    pub metadata_bytes: u64,
    /// Length of the whole disk in bytes.
    pub disk_bytes: u64,
}

impl Store {
    /// All disks, by name.
    ///
    /// # Errors
    /// The first manifest that cannot be read, and what the store answers.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut disks = Vec::new();
        for chain_id in self.objects.disks()? {
            let manifest = self.manifest(chain_id)?;
            disks.push(Listed {
                chain_id,
                layers: manifest.layers.len(),
                metadata_bytes: u64::from(manifest.devices_metadata.blocks()) * BLOCK_BYTES,
                disk_bytes: manifest.flat_blocks() * BLOCK_BYTES,
            });
        }
        Ok(disks)
    }
}
