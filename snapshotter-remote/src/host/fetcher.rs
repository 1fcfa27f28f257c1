//! Objects of stores, verified before anybody has them, and room for them.

use std::sync::Arc;

use disk::Digest;
use snapshot_core::{Error as CoreError, Result as CoreResult, one_line};

use super::{
    blob::Source,
    client::{Client, Patience, Way},
    files,
    metrics::Measured,
    room::Room,
};
use crate::{
    chunk::{self, ChunkId},
    error::{Error, Result},
    store::Name,
};

/// Gets chunks of stores, verified.
#[derive(Debug)]
pub(super) struct Fetcher {
    pub(super) client: Arc<Client>,
    pub(super) room: Arc<Room>,
    measured: Measured,
}

impl Fetcher {
    /// By that client, for a cache of so much room.
    pub(super) fn new(client: Arc<Client>, room: Arc<Room>, measured: Measured) -> Self {
        Self {
            client,
            room,
            measured,
        }
    }

    /// Does what needs about so much room; once more, after something was taken away, when the disk is full.
    pub(super) fn with_room<T>(
        &self,
        bytes: u64,
        work: impl Fn() -> CoreResult<T>,
    ) -> CoreResult<T> {
        match work() {
            Err(CoreError::Io { source, .. })
                if files::is_full(&source) && self.room.make(bytes) =>
            {
                work()
            }
            done => done,
        }
    }

    /// An object, opened; what is damaged is asked for a second time, as it may have been the way.
    pub(super) fn get<T>(
        &self,
        name: Name,
        bytes_max: usize,
        patience: Patience,
        open: impl Fn(&[u8]) -> Result<T>,
    ) -> Result<T> {
        let mut is_second = false;
        loop {
            // A proxy may keep what is damaged.
            let way = if is_second { Way::Direct } else { Way::Usual };
            let bytes = self.client.get(name, bytes_max, (patience, way))?;
            let object = name.to_string();
            let bytes = bytes.ok_or(Error::Absent { object })?;
            match open(&bytes) {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    self.measured.damaged();
                    let why = one_line(&error);
                    tracing::error!(object = %name, why, "a store's object is refused");
                    if is_second {
                        return Err(error);
                    }
                    is_second = true;
                }
            }
        }
    }
}

impl Source for Fetcher {
    fn chunk(&self, id: ChunkId, blocks: u32, patience: Patience) -> CoreResult<Vec<u8>> {
        let name = Name::Chunk(id);
        let contents = self.get(name, chunk::STORED_BYTES_MAX, patience, |bytes| {
            chunk::open(bytes, id, blocks)
        });
        let contents = contents.map_err(refused)?;
        self.measured.chunk();
        Ok(contents)
    }

    fn close(&self) {
        self.client.close();
        self.room.end();
    }

    fn make_room(&self, bytes: u64) -> bool {
        self.room.make(bytes)
    }

    fn wrote(&self, bytes: u64) {
        self.room.wrote(bytes);
    }

    fn has_room(&self) -> bool {
        self.room.has_some()
    }

    fn trace(&self, disk: Digest) -> CoreResult<Option<Vec<u8>>> {
        self.client.trace(disk).map_err(refused)
    }

    fn put_trace(&self, disk: Digest, trace: Vec<u8>) -> CoreResult<()> {
        self.client.put_trace(disk, &trace).map_err(refused)
    }
}

/// What containerd is told.
pub(super) fn refused(error: Error) -> CoreError {
    match error {
        Error::Daemon(error) => error,
        Error::Unreachable { .. } => CoreError::Unavailable(one_line(&error)),
        Error::Damaged { .. } | Error::Untrusted { .. } | Error::Absent { .. } => {
            CoreError::DataLoss(one_line(&error))
        }
        other => CoreError::Precondition(one_line(&other)),
    }
}
