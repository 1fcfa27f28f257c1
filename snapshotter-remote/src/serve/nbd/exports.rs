//! What all connections share: disks that are open, and chunks that were read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use disk::Digest;
use snapshot_core::one_line;

use super::cache::Cache;
use crate::{
    chunk::{self, ChunkId},
    error::{Error, Result},
    nbd::Failure,
    serve::{
        answer::{Served, is_out_of_descriptors},
        run::PAUSE,
    },
    signature::digest,
    store::{FlatDisk, Name},
};

/// Disks that are listed; who has more is asked for them by name.
const LISTED_MAX: usize = 10_000;

/// A store's disks for NBD clients.
#[derive(Debug)]
pub(in crate::serve) struct Exports {
    pub(super) served: Arc<Served>,
    chunks: Cache,
    /// Those that somebody has open.
    disks: Mutex<HashMap<Digest, Weak<FlatDisk>>>,
}

impl Exports {
    /// Of what is served by HTTP, with that much memory for chunks.
    pub(in crate::serve) fn new(served: Arc<Served>, cache_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            served,
            chunks: Cache::new(cache_bytes),
            disks: Mutex::default(),
        })
    }

    /// Names of all disks; none where they are too many or cannot be listed.
    pub(super) async fn list(self: &Arc<Self>) -> Option<Vec<String>> {
        let listed = self.read(|this| this.served.reader.disks(LISTED_MAX)).await;
        let found = listed.inspect_err(|error| {
            let why = one_line(error);
            tracing::error!(why, "disks cannot be listed for NBD clients");
        });
        let names = found.ok()??.into_iter();
        Some(names.map(|chain_id| format!("sha256:{chain_id}")).collect())
    }

    /// The disk of that name, if the store has it.
    ///
    /// # Errors
    /// What keeps it from being read; it is in the log.
    pub(super) async fn find(self: &Arc<Self>, name: &str) -> Result<Option<Arc<FlatDisk>>> {
        let Some(chain_id) = name.strip_prefix("sha256:").and_then(digest) else {
            return Ok(None);
        };
        if let Some(disk) = self.disks().get(&chain_id).and_then(Weak::upgrade) {
            return Ok(Some(disk));
        }
        let opened = self
            .read(move |this| FlatDisk::open(&this.served.reader, chain_id))
            .await;
        let absent = Name::Disk(chain_id).to_string();
        match opened {
            Ok(disk) => {
                let disk = Arc::new(disk);
                let mut disks = self.disks();
                disks.retain(|_, disk| disk.strong_count() > 0);
                disks.insert(chain_id, Arc::downgrade(&disk));
                Ok(Some(disk))
            }
            Err(Error::Absent { object }) if object == absent => Ok(None),
            Err(error) => {
                let why = one_line(&error);
                tracing::error!(%chain_id, why, "a disk cannot be exported");
                Err(error)
            }
        }
    }

    /// The contents of a chunk, verified.
    ///
    /// # Errors
    /// [`Failure::Unreadable`]; why is in the log.
    pub(super) async fn chunk(
        self: &Arc<Self>,
        id: ChunkId,
        blocks: u32,
    ) -> Result<Arc<Vec<u8>>, Failure> {
        if let Some(contents) = self.chunks.get(id, blocks) {
            return Ok(contents);
        }
        let read = self.read(move |this| {
            let stored = this
                .served
                .reader
                .get(Name::Chunk(id), chunk::STORED_BYTES_MAX)?;
            let contents = Arc::new(chunk::open(&stored, id, blocks)?);
            this.chunks.put(id, Arc::clone(&contents));
            Ok(contents)
        });
        read.await.map_err(|error| {
            let why = one_line(&error);
            tracing::error!(why, "an NBD client is told that a chunk cannot be read");
            Failure::Unreadable
        })
    }

    /// On one of the places of those who read files. NBD has no word for "later", so what too many open files keep from being read is
    /// tried again as long as the connection may be without an answer.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Fn(&Self) -> Result<T> + Copy + Send + 'static,
    ) -> Result<T> {
        let mut is_told = false;
        loop {
            let this = Arc::clone(self);
            let done = self.served.blocking(move || work(&this)).await;
            let done = done
                .unwrap_or_else(|_ending| Err(Error::Setting("the server is ending".to_owned())));
            match done {
                Err(error) if is_out_of_descriptors(&error) => {
                    if !is_told {
                        tracing::warn!(%error, "no more files can be opened: an NBD client waits");
                        is_told = true;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    fn disks(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Weak<FlatDisk>>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
