//! An image into the store: each layer, then a disk for each prefix of its layers, because containerd asks
//! for them one by one from the lowest on.

use std::{collections::BTreeMap, io::Seek};

use disk::{Digest, Form, Image, Tree};

use super::{Store, chunks, lock, name::Name};
use crate::{
    error::{Error, Result},
    image::Source,
    manifest::{Device, Layer, Manifest, chain_ids},
    signature,
    table::Table,
};

/// What the store has of an image now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// Its name for containerd.
    pub chain_id: Digest,
    /// How many layers it has.
    pub layers: usize,
    /// Disks that were not there before, one for each prefix of layers.
    pub disks_made: usize,
    /// Length of the whole disk, if it were one file.
    pub disk_bytes: u64,
}

/// Directories of objects that were there already, perhaps put by another who has not synced them yet:
/// they are on the disk before a manifest leads to them, and before it is said that all is well.
#[derive(Debug, Default)]
pub(super) struct Found(BTreeMap<String, Name>);

impl Found {
    pub(super) fn note(&mut self, name: Name) {
        self.0.insert(name.directory(), name);
    }

    pub(super) fn chunks(&mut self, table: &Table) {
        for (id, _) in table.chunks() {
            self.note(Name::Chunk(id));
        }
    }

    /// Once for each directory.
    pub(super) fn sync(&mut self, store: &Store) -> Result<()> {
        for name in std::mem::take(&mut self.0).into_values() {
            store.objects.sync_directory_of(name)?;
        }
        Ok(())
    }
}

impl Store {
    /// Adds an image. What the store has already is not read again.
    ///
    /// # Errors
    /// For an image that is not what its digests say or cannot be a disk, and what the store answers.
    pub fn add(&self, image: &Source<'_>) -> Result<Added> {
        self.add_telling(image, &|_chain_id| {})
    }

    /// The same, telling of each disk as soon as it is there.
    ///
    /// # Errors
    /// As [`Store::add`].
    pub fn add_telling(&self, image: &Source<'_>, told: &dyn Fn(Digest)) -> Result<Added> {
        let adding = lock::adding(&self.objects)?;
        let layers = image.diff_ids();
        let chain_ids = chain_ids(layers);
        let Some(&chain_id) = chain_ids.last() else {
            return Err(Error::Image {
                image: image.to_string(),
                what: "it has no layers, so there is nothing to mount".to_owned(),
            });
        };
        let (mut tree, mut kept) = (Tree::new(), Vec::new());
        let mut disks_made = 0;
        let mut disk_bytes = 0;
        let mut found = Found::default();
        for (index, (&diff_id, &chain_id)) in layers.iter().zip(&chain_ids).enumerate() {
            let layer = self.layer(diff_id, || image.layer(index), &mut found)?;
            let applied = tree.apply(&layer.layer, diff_id);
            applied.map_err(|source| Error::Layer { diff_id, source })?;
            let stored = layer.stored;
            kept.push((Layer { diff_id, stored }, layer.table));
            let manifest = match self.whole_disk(chain_id, &mut found)? {
                Some(manifest) => checked(manifest, chain_id, &kept)?,
                None => {
                    disks_made += 1;
                    found.sync(self)?;
                    self.make_disk(&tree, chain_id, &kept, &adding)?
                }
            };
            disk_bytes = manifest.flat_blocks() * disk::BLOCK_BYTES;
            told(chain_id);
        }
        found.sync(self)?;
        drop(adding.confirm()?);
        Ok(Added {
            chain_id,
            layers: layers.len(),
            disks_made,
            disk_bytes,
        })
    }

    /// The manifest of a chain, if the store has it and its metadata.
    fn whole_disk(&self, chain_id: Digest, found: &mut Found) -> Result<Option<Manifest>> {
        let manifest = match self.manifest(chain_id) {
            Ok(manifest) => manifest,
            Err(Error::Absent { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_whole = self.has_chunks(&manifest.devices_metadata)?
            && self.has_chunks(&manifest.flat_metadata)?;
        if !is_whole {
            return Ok(None);
        }
        found.chunks(&manifest.devices_metadata);
        found.chunks(&manifest.flat_metadata);
        found.note(Name::Disk(chain_id));
        Ok(Some(manifest))
    }

    /// The manifest of a chain.
    ///
    /// # Errors
    /// [`Error::Absent`], what [`signature::open`] finds, and what the store answers.
    pub fn manifest(&self, chain_id: Digest) -> Result<Manifest> {
        let bytes = self
            .objects
            .get(Name::Disk(chain_id), signature::BYTES_MAX)?;
        signature::open(&bytes, chain_id, &[self.public])
    }

    fn make_disk(
        &self,
        tree: &Tree,
        chain_id: Digest,
        kept: &[(Layer, [u8; 32])],
        adding: &lock::Held,
    ) -> Result<Manifest> {
        let (devices_metadata, devices) = self.metadata(tree, chain_id, Form::Devices)?;
        let (flat_metadata, same) = self.metadata(tree, chain_id, Form::Flat)?;
        debug_assert_eq!(devices, same, "the blobs of a disk are those of its tree");
        let devices = devices.into_iter().map(|blob| {
            let kept = kept.iter().find(|(layer, _)| layer.diff_id == blob.diff_id);
            let (_, table) = kept.expect("the blobs of a tree are those of its layers");
            Device {
                diff_id: blob.diff_id,
                blocks: blob.blocks,
                table: *table,
            }
        });
        let manifest = Manifest {
            layers: kept.iter().map(|(layer, _)| *layer).collect(),
            devices_metadata,
            flat_metadata,
            devices: devices.collect(),
        };
        let key = self.private.as_ref().ok_or_else(|| {
            let what = "nothing is signed, as nobody has said where the private key is: --key-file (s3.key_file) does";
            Error::Setting(what.to_owned())
        })?;
        let signed = key.sign(&manifest)?;
        let _step = adding.confirm()?;
        self.objects.put(Name::Disk(chain_id), signed)?;
        Ok(manifest)
    }

    fn metadata(
        &self,
        tree: &Tree,
        chain_id: Digest,
        form: Form,
    ) -> Result<(Table, Vec<disk::Blob>)> {
        let failed = |source| Error::Disk { chain_id, source };
        let image = Image::of(tree, chain_id, form).map_err(failed)?;
        let mut file = self.objects.scratch()?;
        image.write(&file).map_err(failed)?;
        file.rewind().map_err(Error::Read)?;
        let blocks = u32::try_from(image.metadata_bytes() / disk::BLOCK_BYTES);
        let blocks = blocks.expect("a disk has 32-bit addresses");
        let table = chunks::put(&self.objects, &file, blocks)?;
        Ok((table, image.blobs().collect()))
    }
}

/// The manifest, if it was signed for the stored layers that are there: others would make another disk.
fn checked(manifest: Manifest, chain_id: Digest, kept: &[(Layer, [u8; 32])]) -> Result<Manifest> {
    if manifest
        .layers
        .iter()
        .eq(kept.iter().map(|(layer, _)| layer))
    {
        return Ok(manifest);
    }
    let what = "a stored layer is another than its manifest says (`store verify` says which)";
    Err(Error::damaged(Name::Disk(chain_id).to_string(), what))
}
