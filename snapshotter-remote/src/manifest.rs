//! The manifest of a disk: what a chain of layers is as bytes, down to the digest of each of them. There
//! is one way to write a manifest, and nothing else is read.
//!
//! ```text
//!  "pouchdsk"   version   version of the disk's format     numbers are 32 bits, little endian
//!  number of layers, for each its diffID and the           lowest first
//!      BLAKE3 of what the store keeps of it for merging
//!  table of the metadata, form `devices`
//!  table of the metadata, form `flat`
//!  number of devices, for each its diffID, blocks, digest of its table
//! ```

use std::collections::BTreeSet;

use disk::{Digest, FORMAT_VERSION};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    fields::{self, Fields},
    table::Table,
};

const MAGIC: &[u8; 8] = b"pouchdsk";

/// Raised with what is written. Version 1 did not say what the store keeps of its layers.
const VERSION: u32 = 2;

/// Layers that an image may have; containerd's overlayfs ends far below.
pub const LAYERS_MAX: usize = 4096;

/// Length that a manifest may have: a tree of a hundred million names fits.
pub const BYTES_MAX: usize = 8 << 20;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its layers, lowest first; at least one.
    pub layers: Vec<Layer>,
    /// Metadata for [`disk::Form::Devices`].
    pub devices_metadata: Table,
    /// Metadata for [`disk::Form::Flat`].
    pub flat_metadata: Table,
    /// The blobs, in the order of the device table and of the flat form.
    pub devices: Vec<Device>,
}

/// A layer of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub diff_id: Digest,
    /// BLAKE3 of what the store keeps of it: diffID, digest of its blob's table, and all that merging
    /// needs. Before it is compressed, so that it is the same in every store.
    pub stored: [u8; 32],
}

/// A blob that a disk needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its layer, one of the manifest's; no layer is twice a device.
    pub diff_id: Digest,
    /// Its length.
    pub blocks: u32,
    /// [`Table::digest`] of its table.
    pub table: [u8; 32],
}

impl Device {
    /// Its table, of the bytes of that object.
    ///
    /// # Errors
    /// [`Error::Damaged`] for other bytes, and a table of another length.
    pub fn open_table(&self, object: &str, bytes: &[u8]) -> Result<Table> {
        let table = Table::open(object, bytes, self.table)?;
        if table.blocks() != self.blocks {
            let what = "it is of another length than its disk says";
            return Err(Error::damaged(object, what));
        }
        Ok(table)
    }
}

impl Manifest {
    /// The name that containerd asks for: the last of [`chain_ids`].
    #[must_use]
    pub fn chain_id(&self) -> Digest {
        let mut ids = chain_ids(&self.diff_ids());
        ids.pop().expect("there is at least one layer")
    }

    /// The diffIDs of its layers, lowest first.
    #[must_use]
    pub fn diff_ids(&self) -> Vec<Digest> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }

    /// Length of the flat disk in blocks.
    #[must_use]
    pub fn flat_blocks(&self) -> u64 {
        let blobs = self.devices.iter().map(|device| u64::from(device.blocks));
        u64::from(self.flat_metadata.blocks()) + blobs.sum::<u64>()
    }

    /// The bytes that are signed.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.layers.len() > LAYERS_MAX {
            return Err(Error::Limit {
                what: "layers of an image",
                limit: LAYERS_MAX as u64,
            });
        }
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&fields::count(self.layers.len()));
        for layer in &self.layers {
            out.extend_from_slice(&layer.diff_id.0);
            out.extend_from_slice(&layer.stored);
        }
        self.devices_metadata.encode(&mut out);
        self.flat_metadata.encode(&mut out);
        out.extend_from_slice(&fields::count(self.devices.len()));
        for device in &self.devices {
            out.extend_from_slice(&device.diff_id.0);
            out.extend_from_slice(&device.blocks.to_le_bytes());
            out.extend_from_slice(&device.table);
        }
        if out.len() > BYTES_MAX {
            return Err(Error::Limit {
                what: "bytes of a manifest",
                limit: BYTES_MAX as u64,
            });
        }
        Ok(out)
    }

    /// The manifest of these bytes, which must be exactly what [`Manifest::encode`] writes.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::OtherVersion`].
    pub fn decode(object: &str, bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(object, bytes);
        if bytes.len() > BYTES_MAX {
            return Err(fields.damaged("it is longer than a manifest may be"));
        }
        if fields.array()? != *MAGIC {
            return Err(fields.damaged("no manifest begins like this"));
        }
        for known in [VERSION, FORMAT_VERSION] {
            let found = fields.number()?;
            if found != known {
                return Err(Error::OtherVersion {
                    object: fields.object().to_owned(),
                    found,
                    known,
                });
            }
        }
        let layers = layers(&mut fields)?;
        let devices_metadata = metadata(&mut fields)?;
        let flat_metadata = metadata(&mut fields)?;
        let devices = devices(&mut fields, &layers)?;
        let manifest = Self {
            layers,
            devices_metadata,
            flat_metadata,
            devices,
        };
        if manifest.flat_blocks() >= u32::MAX.into() {
            return Err(fields.damaged("it has more blocks than a disk"));
        }
        fields.finish()?;
        Ok(manifest)
    }
}

fn layers(fields: &mut Fields<'_>) -> Result<Vec<Layer>> {
    let count = fields.count(64)?;
    if count == 0 || count > LAYERS_MAX {
        return Err(fields.damaged("it has no layer, or too many"));
    }
    let layer = |_| {
        Ok(Layer {
            diff_id: Digest(fields.array()?),
            stored: fields.array()?,
        })
    };
    (0..count).map(layer).collect()
}

fn metadata(fields: &mut Fields<'_>) -> Result<Table> {
    let table = Table::decode(fields)?;
    if table.blocks() == 0 {
        return Err(fields.damaged("a disk without metadata"));
    }
    Ok(table)
}

fn devices(fields: &mut Fields<'_>, layers: &[Layer]) -> Result<Vec<Device>> {
    // Each layer is taken out when it has become a device.
    let mut known: BTreeSet<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
    let mut devices = Vec::new();
    for _ in 0..fields.count(68)? {
        let device = Device {
            diff_id: Digest(fields.array()?),
            blocks: fields.number()?,
            table: fields.array()?,
        };
        if !known.remove(&device.diff_id) {
            return Err(fields.damaged("a device that is no layer, or one twice"));
        }
        if device.blocks == 0 {
            return Err(fields.damaged("a device without contents"));
        }
        devices.push(device);
    }
    Ok(devices)
}

/// The chainID of each prefix of these layers (image-spec, config.md, "Layer ChainID").
#[must_use]
pub fn chain_ids(layers: &[Digest]) -> Vec<Digest> {
    let mut ids: Vec<Digest> = Vec::with_capacity(layers.len());
    for layer in layers {
        ids.push(match ids.last() {
            None => *layer,
            Some(below) => {
                let text = format!("sha256:{below} sha256:{layer}");
                Digest(Sha256::digest(text).into())
            }
        });
    }
    ids
}
