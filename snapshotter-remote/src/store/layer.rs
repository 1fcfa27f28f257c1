//! One layer in the store: its blob as chunks, and what merging needs of it.
//!
//! The object is the BLAKE3 of what is in it, then zstd of: the diffID, the digest of the blob's table, the
//! layer as `disk` stores it.

use std::io::{Read, Seek};

use disk::{Digest, Layer, Limits};

use super::{Store, add::Found, chunks, name::Name, objects::Objects};
use crate::{
    chunk::ChunkId,
    error::{Error, Result},
    image::LayerTar,
    table::{self, Table},
};

/// What a layer may have.
pub(super) const LIMITS: Limits = Limits {
    blob_bytes_max: 64 << 30,
    ..Limits::GENEROUS
};

/// Length of a stored layer, in the store and in memory.
const BYTES_MAX: usize = 512 << 20;

/// A layer that the store has.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) layer: Layer,
    /// [`Table::digest`] of its blob's.
    pub(super) table: [u8; 32],
    /// [`crate::manifest::Layer::stored`].
    pub(super) stored: [u8; 32],
}

/// The same before the layer is decoded.
struct Packed {
    table: [u8; 32],
    stored: [u8; 32],
    /// What was verified; the layer is behind [`LAYER_AT`].
    payload: Vec<u8>,
}

/// The diffID and the digest of the table.
const LAYER_AT: usize = 64;

/// The digest of a stored layer's table, for who does not need the layer.
pub(super) fn table_of(objects: &Objects, diff_id: Digest) -> Result<[u8; 32]> {
    Ok(Packed::load(objects, diff_id)?.table)
}

impl Packed {
    fn load(objects: &Objects, diff_id: Digest) -> Result<Self> {
        let name = Name::Layer(diff_id);
        let object = name.to_string();
        let damaged = |what| Error::damaged(&object, what);
        let bytes = objects.get(name, BYTES_MAX)?;
        let Some((sum, packed)) = bytes.split_first_chunk::<32>() else {
            return Err(damaged("it ends too early"));
        };
        let mut payload = Vec::new();
        zstd::stream::Decoder::with_buffer(packed)
            .and_then(|unpacked| {
                unpacked
                    .take(BYTES_MAX as u64 + 1)
                    .read_to_end(&mut payload)
            })
            .map_err(|_its_words| damaged("it is no zstd"))?;
        if payload.len() > BYTES_MAX || blake3::hash(&payload) != *sum {
            return Err(damaged("its contents are not those that were written"));
        }
        let Some((of, rest)) = payload.split_first_chunk::<32>() else {
            return Err(damaged("it ends too early"));
        };
        if Digest(*of) != diff_id {
            return Err(damaged("it is another layer's"));
        }
        let Some(table) = rest.first_chunk::<32>() else {
            return Err(damaged("it ends too early"));
        };
        Ok(Self {
            table: *table,
            stored: *sum,
            payload,
        })
    }
}

impl Kept {
    pub(super) fn load(objects: &Objects, diff_id: Digest) -> Result<Self> {
        let packed = Packed::load(objects, diff_id)?;
        let layer = Layer::decode(&packed.payload[LAYER_AT..], &LIMITS);
        Ok(Self {
            layer: layer.map_err(|source| Error::Layer { diff_id, source })?,
            table: packed.table,
            stored: packed.stored,
        })
    }

    /// Puts it into the store.
    fn put(objects: &Objects, diff_id: Digest, layer: Layer, table: [u8; 32]) -> Result<Self> {
        let mut payload = [diff_id.0, table].concat();
        payload.extend_from_slice(&layer.encode());
        if payload.len() > BYTES_MAX {
            return Err(Error::Limit {
                what: "bytes of names and attributes in a layer",
                limit: BYTES_MAX as u64,
            });
        }
        let stored = *blake3::hash(&payload).as_bytes();
        let mut bytes = stored.to_vec();
        zstd::stream::copy_encode(&payload[..], &mut bytes, 3).map_err(Error::Compress)?;
        objects.put(Name::Layer(diff_id), bytes)?;
        Ok(Self {
            layer,
            table,
            stored,
        })
    }
}

/// The table of that digest.
pub(super) fn table(objects: &Objects, digest: [u8; 32]) -> Result<Table> {
    let name = Name::Table(digest);
    let bytes = objects.get(name, table::BYTES_MAX)?;
    Table::open(&name.to_string(), &bytes, digest)
}

impl Store {
    /// The layer, converted if the store does not have all of it.
    pub(super) fn layer(
        &self,
        diff_id: Digest,
        open: impl FnOnce() -> Result<LayerTar>,
        found: &mut Found,
    ) -> Result<Kept> {
        if let Some(kept) = self.whole_layer(diff_id, found)? {
            return Ok(kept);
        }
        let mut tar = open()?;
        let mut blob = self.objects.scratch()?;
        let read = Layer::read(&mut tar, &blob, &LIMITS);
        let layer = tar.judge(read.map_err(|source| Error::Layer { diff_id, source }))?;
        blob.rewind().map_err(Error::Read)?;
        let table = chunks::put(&self.objects, &blob, layer.blob_blocks)?;
        let mut bytes = Vec::new();
        table.encode(&mut bytes);
        let table = table.digest();
        self.objects.put(Name::Table(table), bytes)?;
        Kept::put(&self.objects, diff_id, layer, table)
    }

    /// The layer, if nothing of it is missing: what was removed because it was damaged is made again.
    fn whole_layer(&self, diff_id: Digest, found: &mut Found) -> Result<Option<Kept>> {
        let loaded = Kept::load(&self.objects, diff_id).and_then(|kept| {
            let table = table(&self.objects, kept.table)?;
            if table.blocks() != kept.layer.blob_blocks {
                let what = "its table is of another length than its blob";
                return Err(Error::damaged(Name::Layer(diff_id).to_string(), what));
            }
            Ok((kept, table))
        });
        match loaded {
            Ok((kept, table)) if self.has_chunks(&table)? => {
                found.chunks(&table);
                found.note(Name::Table(kept.table));
                found.note(Name::Layer(diff_id));
                Ok(Some(kept))
            }
            Ok(_) => Ok(None),
            Err(Error::Absent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the store has all chunks of a table.
    pub(super) fn has_chunks(&self, table: &Table) -> Result<bool> {
        let ids: Vec<ChunkId> = table.chunks().map(|(id, _)| id).collect();
        chunks::are_there(&self.objects, &ids)
    }
}
