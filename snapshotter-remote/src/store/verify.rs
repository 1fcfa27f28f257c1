//! Every byte of the store against its name, and every disk against what it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use disk::Digest;

use super::{
    Store, chunks,
    layer::{self, Kept},
    lock,
    name::Name,
};
use crate::{
    chunk::{self, ChunkId},
    error::{Error, Result},
    manifest::Manifest,
    table::Table,
};

/// Something that is not as it should be.
#[derive(Debug)]
pub struct Damage {
    /// The object that is damaged or missing.
    pub object: Name,
    /// Whether it is there and good for nobody: what another version made, or another key signed,
    /// is not removed.
    pub may_go: bool,
    /// What is wrong.
    pub error: Error,
}

/// What a look at everything has found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Disks that were looked at.
    pub disks: usize,
    /// Chunks that were looked at.
    pub chunks: usize,
    /// Bytes in them, uncompressed.
    pub chunk_bytes: u64,
    /// Chunks that no disk needs.
    pub chunks_unused: usize,
    /// What is wrong.
    pub damages: Vec<Damage>,
}

impl Verified {
    /// Keeps what was found wrong; errors of the way to an object are the caller's.
    fn check<T>(&mut self, object: Name, looked: Result<T>) -> Result<Option<T>> {
        let error = match looked {
            Ok(looked) => return Ok(Some(looked)),
            Err(error) => error,
        };
        let Some(may_go) = may_go(&error) else {
            return Err(error);
        };
        self.damages.push(Damage {
            object,
            may_go,
            error,
        });
        Ok(None)
    }
}

/// Whether what is wrong with an object is that it is good for nobody; nothing if the way to it is wrong.
fn may_go(error: &Error) -> Option<bool> {
    match error {
        Error::Absent { .. }
        | Error::OtherVersion { .. }
        | Error::Untrusted { .. }
        | Error::Layer {
            source: disk::Error::OtherVersion { .. } | disk::Error::Limit { .. },
            ..
        } => Some(false),
        Error::Damaged { .. } | Error::Layer { .. } => Some(true),
        _ => None,
    }
}

impl Store {
    /// Looks at everything.
    ///
    /// # Errors
    /// What the store answers when an object cannot be read; what is wrong with objects is in the
    /// answer.
    pub fn verify(&self) -> Result<Verified> {
        let mut verified = Verified::default();
        let mut used = Used::default();
        for chain_id in self.objects.disks()? {
            verified.disks += 1;
            self.verify_disk(chain_id, &mut used, &mut verified)?;
        }
        for (diff_id, _) in self.objects.layers()? {
            let loaded = self.layer_as_signed(diff_id, &used.layers);
            if let Some(kept) = verified.check(Name::Layer(diff_id), loaded)? {
                used.tables.insert(kept.table);
            }
        }
        let tables = self.objects.tables()?.into_iter();
        used.tables.extend(tables.map(|(digest, _)| digest));
        for digest in used.tables {
            let loaded = layer::table(&self.objects, digest);
            if let Some(table) = verified.check(Name::Table(digest), loaded)? {
                used.chunks.extend(table.chunks().map(|(id, _)| id));
            }
        }
        self.verify_chunks(used.chunks, &mut verified)?;
        Ok(verified)
    }

    /// Takes damaged objects away, so that adding their images makes them again. Each is looked at
    /// once more, when nobody else changes the store: what is gone or made again meanwhile counts not.
    ///
    /// # Errors
    /// [`Error::Busy`] when others change the store for as long as `wait`, and what the store answers.
    pub fn remove_damaged(&self, verified: &Verified, wait: Duration) -> Result<usize> {
        let alone = lock::removing(&self.objects, wait)?;
        let damaged = verified.damages.iter().filter(|damage| damage.may_go);
        let mut signed = Signed::new();
        for chain_id in self.objects.disks()? {
            // What cannot be read says nothing.
            if let Ok(manifest) = self.manifest(chain_id) {
                note_signed(&manifest, &mut signed);
            }
        }
        let mut removed = 0;
        for damage in damaged {
            let is_damaged = match self.look(damage.object, &signed) {
                Ok(()) => false,
                Err(error) => match may_go(&error) {
                    Some(is_damaged) => is_damaged,
                    None => return Err(error),
                },
            };
            if is_damaged {
                let _step = alone.confirm()?;
                self.objects.remove(damage.object)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// One object by itself.
    fn look(&self, object: Name, signed: &Signed) -> Result<()> {
        match object {
            Name::Disk(chain_id) => self.manifest(chain_id).map(drop),
            Name::Layer(diff_id) => self.layer_as_signed(diff_id, signed).map(drop),
            Name::Table(digest) => layer::table(&self.objects, digest).map(drop),
            Name::Chunk(id) => self.chunk(id).map(drop),
        }
    }

    /// A stored layer, if it is the one that manifests were signed for.
    fn layer_as_signed(&self, diff_id: Digest, signed: &Signed) -> Result<Kept> {
        let kept = Kept::load(&self.objects, diff_id)?;
        match signed.get(&diff_id) {
            Some(stored) if *stored != kept.stored => Err(Error::damaged(
                Name::Layer(diff_id).to_string(),
                "it is another than signed manifests say",
            )),
            Some(_) | None => Ok(kept),
        }
    }

    /// Its length, uncompressed.
    fn chunk(&self, id: ChunkId) -> Result<u64> {
        let stored = self.objects.get(Name::Chunk(id), chunk::STORED_BYTES_MAX)?;
        chunk::verify(&stored, id)
    }

    fn verify_disk(
        &self,
        chain_id: Digest,
        used: &mut Used,
        verified: &mut Verified,
    ) -> Result<()> {
        let loaded = self.manifest(chain_id);
        let Some(manifest) = verified.check(Name::Disk(chain_id), loaded)? else {
            return Ok(());
        };
        note_signed(&manifest, &mut used.layers);
        used.add(&manifest.devices_metadata);
        used.add(&manifest.flat_metadata);
        let tables = manifest.devices.iter().map(|device| device.table);
        used.tables.extend(tables);
        Ok(())
    }

    /// All chunks that are there, then those that are not.
    fn verify_chunks(&self, mut used: BTreeSet<ChunkId>, verified: &mut Verified) -> Result<()> {
        for first in 0..=u8::MAX {
            let ids = self.objects.chunks(first)?;
            let looked = Mutex::new(BTreeMap::new());
            chunks::each(&ids, &|(id, _)| {
                let contents = self.chunk(*id);
                let mut looked = looked.lock().unwrap_or_else(PoisonError::into_inner);
                looked.insert(*id, contents);
                Ok(())
            })?;
            let looked = looked.into_inner();
            for (id, contents) in looked.unwrap_or_else(PoisonError::into_inner) {
                verified.chunks += 1;
                if !used.remove(&id) {
                    verified.chunks_unused += 1;
                }
                let bytes = verified.check(Name::Chunk(id), contents)?;
                verified.chunk_bytes += bytes.unwrap_or_default();
            }
        }
        for id in used {
            let object = Name::Chunk(id);
            let absent = Error::Absent {
                object: object.to_string(),
            };
            verified.check::<()>(object, Err(absent))?;
        }
        Ok(())
    }
}

/// What manifests say of stored layers.
type Signed = BTreeMap<Digest, [u8; 32]>;

fn note_signed(manifest: &Manifest, signed: &mut Signed) {
    let layers = manifest.layers.iter();
    signed.extend(layers.map(|layer| (layer.diff_id, layer.stored)));
}

/// What disks need.
#[derive(Debug, Default)]
struct Used {
    layers: Signed,
    tables: BTreeSet<[u8; 32]>,
    chunks: BTreeSet<ChunkId>,
}

impl Used {
    fn add(&mut self, table: &Table) {
        self.chunks.extend(table.chunks().map(|(id, _)| id));
    }
}
