//! Objects of stores, verified before anybody has them, and room for them.

use std::sync::Arc;

use disk::Digest;
use snapshot_core::{Error as CoreError, Result as CoreResult, one_line};

use super::{
    blob::Source,
    client::{Client, Patience, Way},
    conversion::Wanted,
    files,
    metrics::Measured,
    room::Room,
};
use crate::{
    chunk::{self, ChunkId},
    error::{Error, Result},
    signature,
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

    /// The manifest of a disk, opened, and its bytes; none where no store has it. What a proxy gave and is refused is asked for once
    /// more, directly.
    pub(super) fn disk<T>(
        &self,
        chain_id: Digest,
        wanted: Option<&Wanted>,
        patience: Patience,
        open: impl Fn(&[u8]) -> Result<T>,
    ) -> Result<Option<(T, Vec<u8>)>> {
        let name = Name::Disk(chain_id).to_string();
        let ask = |way| {
            let asked = (patience, way);
            let bytes = self
                .client
                .get_wanted(&name, wanted, signature::BYTES_MAX, asked)?;
            bytes.map(|bytes| Ok((open(&bytes)?, bytes))).transpose()
        };
        let is_by_proxy = wanted.is_none() && self.client.has_proxy();
        match ask(Way::Usual) {
            Err(error) if is_by_proxy && !matches!(error, Error::Unreachable { .. }) => {
                self.measured.damaged();
                let why = one_line(&error);
                tracing::error!(
                    object = name,
                    why,
                    "an object that a proxy may have given is refused"
                );
                ask(Way::Direct)
            }
            answered => answered,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{client::tests::serve, config::StoreConfig};

    #[test]
    fn a_manifest_that_a_proxy_keeps_damaged_is_asked_of_a_store() {
        let (proxy, by_proxy) = serve(&[("200 OK", "damaged"), ("200 OK", "right")]);
        let (store, by_store) = serve(&[("200 OK", "right"), ("200 OK", "damaged")]);
        let fetcher = |proxy: Option<String>| {
            let config = StoreConfig {
                urls: vec![format!("http://{store}")],
                proxy,
                ..StoreConfig::default()
            };
            let client = Client::new(&config, Measured::default()).unwrap();
            Fetcher::new(client, Arc::new(Room::new(None)), Measured::default())
        };
        let get = |fetcher: &Fetcher| {
            let open = |bytes: &[u8]| match bytes {
                b"right" => Ok(()),
                _ => Err(Error::damaged("the manifest", "in this test")),
            };
            fetcher.disk(Digest([1; 32]), None, Patience::Once, open)
        };
        let with = fetcher(Some(format!("http://{proxy}")));
        for _ in 0..2 {
            let ((), bytes) = get(&with).unwrap().unwrap();
            assert_eq!(bytes, b"right");
        }
        let error = get(&fetcher(None)).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "once: {error}");
        assert_eq!(by_proxy.join().unwrap().len(), 2);
        assert_eq!(by_store.join().unwrap().len(), 2);
    }
}
