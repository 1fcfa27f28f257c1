//! One image of its origin: what it promises, and its layers one by one.

use std::fmt;

use disk::Digest;

use super::{
    documents::Descriptor,
    layer_tar::{BYTES_MAX, LayerTar},
    origin::Origin,
};
use crate::error::Result;

/// An image that can be added.
#[derive(Debug)]
pub struct Source<'l> {
    origin: &'l Origin,
    name: String,
    /// As many as there are diffIDs.
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

impl<'l> Source<'l> {
    pub(super) fn new(
        origin: &'l Origin,
        name: String,
        layers: Vec<Descriptor>,
        diff_ids: Vec<Digest>,
    ) -> Self {
        Self {
            origin,
            name,
            layers,
            diff_ids,
        }
    }

    /// What tools call it, or the digest of its manifest.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of its layers, lowest first, as its config says.
    #[must_use]
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// The layer of that index.
    ///
    /// # Errors
    /// [`crate::Error::Image`] when it is not there, or longer than a layer may be.
    pub fn layer(&self, index: usize) -> Result<LayerTar> {
        let descriptor = &self.layers[index];
        if descriptor.size > BYTES_MAX {
            return Err(self.origin.not(format!(
                "blob sha256:{} has {} bytes, and a layer may have 128 GiB",
                descriptor.digest, descriptor.size
            )));
        }
        let blob = self.origin.blob(descriptor)?;
        let tar = LayerTar::new(
            self.to_string(),
            blob,
            descriptor.digest,
            self.diff_ids[index],
        );
        tar.map_err(|error| {
            let digest = descriptor.digest;
            self.origin.not(format!("blob sha256:{digest}: {error}"))
        })
    }
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, image {}", self.origin, self.name)
    }
}
