//! What no disk needs: layers, tables and chunks that no manifest leads to, traces without a disk, and what an `add` or a server that
//! was killed left half. It is looked for and removed while nobody adds, so it stays waste.

use std::{collections::BTreeSet, mem::discriminant, path::PathBuf, time::Duration};

use disk::Digest;

use super::{Store, add::Found, chunks, layer, lock, name::Name};
use crate::{
    chunk::ChunkId,
    error::{Error, Result},
    table::Table,
};

/// What is removed before a bucket is asked again whether that may be.
const CONFIRMED_MAX: usize = 256;

/// Whether waste goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// It is counted.
    Count,
    /// It is removed.
    Remove,
}

/// Something that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waste {
    /// An object.
    Object(Name),
    /// A file that was to become an object or a trace, or a trace of a disk that is gone, below the store's directory.
    Leftover(PathBuf),
}

impl Waste {
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(one), Self::Object(other)) => discriminant(one) == discriminant(other),
            (Self::Leftover(_), Self::Leftover(_)) => true,
            _ => false,
        }
    }
}

/// All disks, and what they need.
#[derive(Debug, Default)]
struct Needed {
    disks: BTreeSet<Digest>,
    layers: BTreeSet<Digest>,
    /// Those of which a disk shows something, and so names the table.
    shown: BTreeSet<Digest>,
    tables: BTreeSet<[u8; 32]>,
    chunks: BTreeSet<ChunkId>,
}

impl Store {
    /// All waste, with its lengths in bytes; gone, if that is asked for. Kill -9 at any moment leaves
    /// every disk as it is.
    ///
    /// # Errors
    /// [`Error::Busy`] when others change the store for as long as `wait`; [`Error::Unsure`] when a
    /// manifest or table cannot be read, so that nobody knows what it needs (nothing is removed
    /// then); what the store answers.
    pub fn waste(&self, sweep: Sweep, wait: Duration) -> Result<Vec<(Waste, u64)>> {
        let alone = lock::removing(&self.objects, wait)?;
        let needed = self.needed()?;
        let mut waste = Vec::new();
        // What leads to others goes before them.
        for (diff_id, bytes) in self.objects.layers()? {
            if !needed.layers.contains(&diff_id) {
                waste.push((Waste::Object(Name::Layer(diff_id)), bytes));
            }
        }
        for (digest, bytes) in self.objects.tables()? {
            if !needed.tables.contains(&digest) {
                waste.push((Waste::Object(Name::Table(digest)), bytes));
            }
        }
        for first in 0..=u8::MAX {
            for (id, bytes) in self.objects.chunks(first)? {
                if !needed.chunks.contains(&id) {
                    waste.push((Waste::Object(Name::Chunk(id)), bytes));
                }
            }
        }
        let leftovers = self.objects.leftovers()?.into_iter();
        waste.extend(leftovers.map(|(path, bytes)| (Waste::Leftover(path), bytes)));
        let traces = self.objects.traces().waste(&needed.disks)?.into_iter();
        waste.extend(traces.map(|(path, bytes)| (Waste::Leftover(path), bytes)));
        if sweep == Sweep::Remove {
            self.sweep(&waste, &alone)?;
        }
        Ok(waste)
    }

    /// In that order, each kind on the disk before the next.
    fn sweep(&self, waste: &[(Waste, u64)], alone: &lock::Held) -> Result<()> {
        let mut gone = Found::default();
        // Who removed a disk may have been killed before that was on the disk.
        gone.note(Name::Disk(Digest([0; 32])));
        gone.sync(self)?;
        for kind in waste.chunk_by(|(one, _), (other, _)| one.is_like(other)) {
            for some in kind.chunks(CONFIRMED_MAX) {
                drop(alone.confirm()?);
                chunks::each(some, &|(one, _)| {
                    let _step = alone.check()?;
                    match one {
                        Waste::Leftover(path) => self.objects.remove_leftover(path),
                        Waste::Object(name) => self.objects.remove(*name),
                    }
                })?;
            }
            for (one, _) in kind {
                if let Waste::Object(name) = one {
                    gone.note(*name);
                }
            }
            gone.sync(self)?;
        }
        Ok(())
    }

    fn needed(&self) -> Result<Needed> {
        self.objects.only_our_format()?;
        let mut needed = Needed {
            disks: self.objects.disks()?.into_iter().collect(),
            ..Needed::default()
        };
        for chain_id in needed.disks.clone() {
            let manifest = self.manifest(chain_id);
            let manifest = manifest.map_err(|error| unsure(Name::Disk(chain_id), error))?;
            needed.add(&manifest.devices_metadata);
            needed.add(&manifest.flat_metadata);
            needed.layers.extend(manifest.diff_ids());
            for device in &manifest.devices {
                needed.shown.insert(device.diff_id);
                needed.tables.insert(device.table);
            }
        }
        for digest in needed.tables.clone() {
            let table = layer::table(&self.objects, digest);
            needed.add(&table.map_err(|error| unsure(Name::Table(digest), error))?);
        }
        self.kept_for_adding(&mut needed)?;
        Ok(needed)
    }

    /// A layer of which a disk shows nothing has a table, too, and another `add` will want it. What cannot
    /// be read of it is of no use to anybody.
    fn kept_for_adding(&self, needed: &mut Needed) -> Result<()> {
        let hidden: Vec<Digest> = needed.layers.difference(&needed.shown).copied().collect();
        for diff_id in hidden {
            let Some(digest) = readable(layer::table_of(&self.objects, diff_id))? else {
                continue;
            };
            if needed.tables.insert(digest)
                && let Some(table) = readable(layer::table(&self.objects, digest))?
            {
                needed.add(&table);
            }
        }
        Ok(())
    }
}

impl Needed {
    fn add(&mut self, table: &Table) {
        self.chunks.extend(table.chunks().map(|(id, _)| id));
    }
}

/// Nothing for what is missing, damaged or another's.
fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(Error::Absent { .. } | Error::Damaged { .. } | Error::OtherVersion { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn unsure(name: Name, error: Error) -> Error {
    let way_out = match name {
        Name::Disk(chain_id) => format!(", `store rm sha256:{chain_id}` gives it up"),
        Name::Chunk(_) | Name::Table(_) | Name::Layer(_) => String::new(),
    };
    Error::Unsure {
        object: name.to_string(),
        way_out,
        source: Box::new(error),
    }
}
