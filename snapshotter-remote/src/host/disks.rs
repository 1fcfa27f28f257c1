//! The disks of a host: manifests and metadata in the cache, blobs behind them, and what is mounted. Whatever
//! comes from a store is verified here before it is kept.
//!
//! ```text
//!  ROOT/disks/CHAINID/manifest   as the store signed it
//!  ROOT/disks/CHAINID/metadata   for EROFS with devices; whole, or not there
//!  ROOT/blobs/TABLE/             see blob.rs
//! ```
//!
//! What no snapshot stands on goes when the last of them is removed, or at the next start.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use disk::Digest;
use snapshot_core::{Error as CoreError, Result as CoreResult, SnapshotId, Usage, one_line};

use super::{
    attach::{self, Attach, Memory},
    blob::Blob,
    client::Patience,
    conversion::Wanted,
    detach::Leaving,
    fetcher::{Fetcher, refused},
    files,
    lazy::MountedDisk,
    metrics::{Measured, Outcome},
    opens::Reads,
    uses::Uses,
};
use crate::{
    chunk::{self, ChunkId},
    error::{Error, Result},
    manifest::Manifest,
    signature::{self, PublicKey, digest},
    store::Name,
    table::{self, Table},
};

mod cache;
mod care;

pub(super) use cache::cache_bytes;
pub(super) use care::{Checked, Heard, Sweep};

/// A store that did not answer is left alone for so long, so that each layer of a pull does not wait for it.
const AWAY: Duration = Duration::from_secs(5);

/// Where disks are, below the root.
pub(super) const DISKS: &str = "disks";

/// Where blobs are, below the root.
pub(super) const BLOBS: &str = "blobs";

/// What the kernel mounts, in a disk's directory.
pub(super) const METADATA: &str = "metadata";

/// A disk that goes when who reads of it is answered, and its blobs.
type Left = (Leaving, Vec<[u8; 32]>);

/// The disks below one root.
#[derive(Debug)]
pub(super) struct Disks {
    root: PathBuf,
    keys: Vec<PublicKey>,
    fetcher: Arc<Fetcher>,
    attach: Box<dyn Attach>,
    measured: Measured,
    /// Chunks of a disk that are fetched at once when all of it is.
    fetches_max: usize,
    blobs: Mutex<HashMap<[u8; 32], Arc<Blob>>>,
    uses: Mutex<Uses>,
    /// Snapshots that were mounted on disks, as far as this daemon knows.
    users: Mutex<HashMap<SnapshotId, Digest>>,
    /// Held while a disk is made ready at a directory, by directory.
    attaching: Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
    /// Held from a mount until it is noted, and from an unmount until that is noted: the kernel gives the number of a device that is
    /// gone to the next at once. With what was unmounted and is not gone yet.
    opening: Mutex<Vec<Left>>,
    /// Held while files of what is mounted are open here.
    looking: Mutex<()>,
    away_until: Mutex<Option<Instant>>,
}

impl Disks {
    /// Those below that root.
    pub(super) fn open(
        root: &Path,
        keys: Vec<PublicKey>,
        fetcher: Arc<Fetcher>,
        attach: Box<dyn Attach>,
        (measured, fetches_max): (Measured, usize),
    ) -> CoreResult<Self> {
        for directory in [DISKS, BLOBS] {
            files::make_directory(&root.join(directory))?;
        }
        let known = attach.opened().into_iter();
        let known = known.map(|blob| (blob.name(), blob)).collect();
        Ok(Self {
            root: root.to_owned(),
            keys,
            fetcher,
            attach,
            measured,
            fetches_max,
            blobs: Mutex::new(known),
            uses: Mutex::default(),
            users: Mutex::default(),
            attaching: Mutex::default(),
            opening: Mutex::default(),
            looking: Mutex::default(),
            away_until: Mutex::default(),
        })
    }

    /// Whether that disk is on this host.
    pub(super) fn has(&self, chain_id: Digest) -> bool {
        self.uses().has_disk(chain_id)
    }

    /// Whether there is a disk for that chain, which the snapshot then stands on. What cannot be known now
    /// or is not trusted is none: containerd pulls and unpacks it.
    /// A store may be told which image is wanted.
    pub(super) fn begin(&self, id: SnapshotId, chain_id: Digest, wanted: Option<&Wanted>) -> bool {
        let found = self.find(chain_id, wanted);
        let outcome = match &found {
            Ok(Some(_)) => Outcome::Found,
            Ok(None) => Outcome::Absent,
            Err(error) => {
                let why = one_line(error);
                tracing::warn!(%chain_id, why, "a layer is unpacked, as its disk cannot be had");
                match error {
                    Error::Damaged { .. }
                    | Error::Untrusted { .. }
                    | Error::OtherVersion { .. } => {
                        self.measured.damaged();
                        Outcome::Refused
                    }
                    _ => Outcome::Unreachable,
                }
            }
        };
        self.measured.layer(outcome);
        let Ok(Some(manifest)) = found else {
            return false;
        };
        let mut uses = self.uses();
        // It may have gone with its last user since it was found.
        if let Err(error) = self.keep(chain_id, &manifest) {
            let why = error.in_one_line();
            tracing::warn!(%chain_id, why, "a layer is unpacked, as its disk cannot be kept");
            return false;
        }
        let blobs = manifest.0.devices.iter().map(|device| device.table);
        uses.begin(id, chain_id, blobs);
        true
    }

    /// A snapshot that stood on a disk is gone.
    pub(super) fn end(&self, id: SnapshotId, chain_id: Digest) -> CoreResult<()> {
        let mut uses = self.uses();
        let Some(blobs) = uses.end(id, chain_id) else {
            return Ok(());
        };
        files::remove_directory(&self.disk(chain_id))?;
        for blob in blobs {
            self.remove_blob(blob)?;
        }
        drop(uses);
        self.measure();
        Ok(())
    }

    /// Takes a blob that nobody stands on out of the cache.
    fn remove_blob(&self, name: [u8; 32]) -> CoreResult<()> {
        if let Some(blob) = self.known_blobs().remove(&name) {
            self.attach.forget(&blob);
        }
        files::remove_directory(&self.blobs_directory().join(Digest(name).to_string()))
    }

    /// Takes note of all that stand on disks, and takes away what nobody stands on.
    pub(super) fn recover(
        &self,
        used: impl IntoIterator<Item = (SnapshotId, Digest)>,
    ) -> CoreResult<()> {
        let mut uses = self.uses();
        for (id, chain_id) in used {
            match self.kept(chain_id) {
                Ok(Some((manifest, _))) => {
                    let blobs = manifest.devices.iter().map(|device| device.table);
                    uses.begin(id, chain_id, blobs);
                }
                // It is asked for again when it is mounted.
                Ok(None) | Err(_) => uses.begin(id, chain_id, []),
            }
        }
        for (path, name) in directories(&self.root.join(DISKS))? {
            if !uses.has_disk(name) {
                files::remove_directory(&path)?;
            }
        }
        for (_, name) in directories(&self.blobs_directory())? {
            if !uses.has_blob(name.0) {
                self.remove_blob(name.0)?;
            }
        }
        Ok(())
    }

    /// Mounts a disk at a directory, if it is not there already. It may take as long as its back end
    /// fetches.
    pub(super) fn attach(&self, chain_id: Digest, target: &Path) -> CoreResult<()> {
        if attach::is_mounted(target)? {
            return Ok(());
        }
        let turn = {
            let mut attaching = self
                .attaching
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Arc::clone(attaching.entry(target.to_owned()).or_default())
        };
        let attached = {
            let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
            self.attach_in_turn(chain_id, target)
        };
        let mut attaching = self
            .attaching
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Ours and the map's.
        if Arc::strong_count(&turn) <= 2 {
            attaching.remove(target);
        }
        attached
    }

    fn attach_in_turn(&self, chain_id: Digest, target: &Path) -> CoreResult<()> {
        if attach::is_mounted(target)? {
            return Ok(());
        }
        let begun = Instant::now();
        let manifest = self.manifest(chain_id).map_err(refused)?;
        let bytes = u64::from(manifest.devices_metadata.blocks()) * disk::BLOCK_BYTES;
        let fetcher = &self.fetcher;
        let metadata = fetcher.with_room(bytes, || self.metadata(chain_id, &manifest))?;
        let blob =
            |table, blocks| fetcher.with_room(table::BYTES_MAX as u64, || self.blob(table, blocks));
        let blobs = manifest.devices.iter();
        let blobs = blobs.map(|device| blob(device.table, device.blocks));
        let blobs = blobs.collect::<CoreResult<Vec<_>>>()?;
        let disk = MountedDisk::new(chain_id, self.disk(chain_id), &blobs)?;
        let mounted = fetcher.with_room(0, || self.mount(&metadata, &blobs, target));
        if mounted.is_ok() {
            // Before anybody reads of it, and before who is whole is watched no more.
            self.attach.mounted(disk);
        }
        self.attach.settle(&blobs);
        mounted?;
        self.measured.attached();
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            %chain_id, back_end = self.attach.kind().name(), took_ms, "a disk is mounted"
        );
        Ok(())
    }

    /// As long as that takes, nothing of the blobs goes.
    fn mount(&self, metadata: &Path, blobs: &[Arc<Blob>], target: &Path) -> CoreResult<()> {
        let _stays: Vec<_> = blobs.iter().map(|blob| blob.begin_mounting()).collect();
        let files = self.attach.open(blobs)?;
        let mut leaving = self.opening();
        self.note_gone(&mut leaving, None)?;
        let reads = self.attach.reads();
        let memory = match reads {
            Reads::Served => Memory::Once,
            Reads::Told | Reads::Untold => Memory::Twice,
        };
        let how = (self.attach.carrier(), memory);
        attach::mount(how, (metadata, &files), target, |device| {
            self.note_gone(&mut leaving, Some(device))?;
            self.note_number_taken(blobs, device)?;
            blobs
                .iter()
                .try_for_each(|blob| blob.was_opened(device, reads))
        })
    }

    /// A new disk has that number, so none that was there before has it any more: also of those whose end was not seen.
    fn note_number_taken(&self, by: &[Arc<Blob>], device: u64) -> CoreResult<()> {
        let known: Vec<Arc<Blob>> = self.known_blobs().values().cloned().collect();
        let is_other = |blob: &&Arc<Blob>| by.iter().all(|new| new.name() != blob.name());
        let mut others = known.iter().filter(is_other);
        others.try_for_each(|blob| blob.was_closed(device))
    }

    /// A container's snapshot, or a view, has a disk below it.
    pub(super) fn is_used(&self, id: SnapshotId, chain_id: Digest) {
        self.users().insert(id, chain_id);
    }

    /// That snapshot is gone: if it was the last one of its disk, nothing more of that is fetched ahead.
    pub(super) fn is_left(&self, id: SnapshotId) {
        let mut users = self.users();
        let Some(chain_id) = users.remove(&id) else {
            return;
        };
        let is_last = !users.values().any(|other| *other == chain_id);
        drop(users);
        if is_last {
            self.attach.unused(chain_id);
        }
    }

    /// What the layer on top of a chain takes of this host's disk.
    pub(super) fn usage(&self, chain_id: Digest) -> CoreResult<Usage> {
        let mut usage = Usage::default();
        if let Ok(about) = fs::metadata(self.disk(chain_id).join(METADATA)) {
            use std::os::unix::fs::MetadataExt;
            usage.bytes += about.blocks() * 512;
            usage.inodes += 1;
        }
        let Ok(Some((manifest, _))) = self.kept(chain_id) else {
            return Ok(usage);
        };
        let top = manifest.layers.last().map(|layer| layer.diff_id);
        let device = manifest.devices.iter().find(|one| Some(one.diff_id) == top);
        if let Some(blob) = device.and_then(|device| self.known_blobs().get(&device.table).cloned())
        {
            usage.bytes += blob.allocated_bytes()?;
            usage.inodes += 1;
        }
        Ok(usage)
    }

    /// Writes down what has been fetched of all blobs.
    pub(super) fn sync(&self) {
        let blobs: Vec<Arc<Blob>> = self.known_blobs().values().cloned().collect();
        for blob in blobs {
            if let Err(error) = blob.sync() {
                let why = error.in_one_line();
                tracing::warn!(blob = %Digest(blob.name()), why, "what was fetched is not on the disk");
            }
        }
    }

    /// The daemon ends: nothing more is fetched, and what is here is written down.
    pub(super) fn finish(&self) {
        self.attach.finish();
        self.sync();
    }

    /// The manifest and the signed bytes: of the cache, else of a store that is asked once.
    fn find(
        &self,
        chain_id: Digest,
        wanted: Option<&Wanted>,
    ) -> Result<Option<(Manifest, Vec<u8>)>> {
        // What is kept and cannot be trusted any more may have been signed anew.
        if let Ok(Some(kept)) = self.kept(chain_id) {
            return Ok(Some(kept));
        }
        if self.is_away() {
            return Err(Error::Unreachable {
                object: Name::Disk(chain_id).to_string(),
                store: "the stores".to_owned(),
                what: format!("none answered within the last {} seconds", AWAY.as_secs()),
            });
        }
        self.ask(chain_id, wanted, Patience::Once)
    }

    fn ask(
        &self,
        chain_id: Digest,
        wanted: Option<&Wanted>,
        patience: Patience,
    ) -> Result<Option<(Manifest, Vec<u8>)>> {
        let open = |bytes: &[u8]| signature::open(bytes, chain_id, &self.keys);
        let answered = self.fetcher.disk(chain_id, wanted, patience, open);
        let is_away = matches!(answered, Err(Error::Unreachable { .. }));
        let mut away_until = self
            .away_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *away_until = is_away.then(|| Instant::now() + AWAY);
        drop(away_until);
        answered
    }

    fn is_away(&self) -> bool {
        let away_until = self
            .away_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        away_until.is_some_and(|until| Instant::now() < until)
    }

    /// What the cache has.
    fn kept(&self, chain_id: Digest) -> Result<Option<(Manifest, Vec<u8>)>> {
        kept(&self.disk(chain_id), chain_id, &self.keys)
    }

    fn keep(&self, chain_id: Digest, (_, bytes): &(Manifest, Vec<u8>)) -> CoreResult<()> {
        let path = self.disk(chain_id).join("manifest");
        if files::read(&path, signature::BYTES_MAX)?.as_ref() == Some(bytes) {
            return Ok(());
        }
        files::make_directory(&self.disk(chain_id))?;
        files::sync(&self.root.join(DISKS))?;
        files::place(&path, bytes)
    }

    /// The manifest of a disk that is used.
    fn manifest(&self, chain_id: Digest) -> Result<Manifest> {
        if let Ok(Some((manifest, _))) = self.kept(chain_id) {
            return Ok(manifest);
        }
        let object = Name::Disk(chain_id).to_string();
        let found = self.ask(chain_id, None, Patience::Deadline)?;
        let found = found.ok_or(Error::Absent { object })?;
        self.keep(chain_id, &found)?;
        Ok(found.0)
    }

    /// The metadata of a disk, whole. Its chunks are few and small, so they are fetched one by one.
    fn metadata(&self, chain_id: Digest, manifest: &Manifest) -> CoreResult<PathBuf> {
        let path = self.disk(chain_id).join(METADATA);
        let table = &manifest.devices_metadata;
        let bytes = u64::from(table.blocks()) * disk::BLOCK_BYTES;
        match fs::metadata(&path) {
            Ok(about) if about.len() == bytes => return Ok(path),
            _ => {}
        }
        files::place_with(&path, |file| {
            let stored = |id: ChunkId| {
                let verified = |bytes: &[u8]| chunk::verify(bytes, id).map(|_| bytes.to_vec());
                let name = Name::Chunk(id);
                let most = chunk::STORED_BYTES_MAX;
                self.fetcher.get(name, most, Patience::Deadline, verified)
            };
            table.restore(stored, file).map_err(|error| match error {
                Error::Write(source) => CoreError::io("write", &path)(source),
                other => refused(other),
            })
        })?;
        Ok(path)
    }

    fn blob(&self, name: [u8; 32], blocks: u32) -> CoreResult<Arc<Blob>> {
        let blob = self.blob_with(name, || self.table(name))?;
        if blob.blocks() != blocks {
            return Err(CoreError::DataLoss(format!(
                "blob {} has {} blocks, its manifest says {blocks}: the store is damaged, see `store verify`",
                Digest(name),
                blob.blocks()
            )));
        }
        Ok(blob)
    }

    fn blob_with(
        &self,
        name: [u8; 32],
        table: impl FnOnce() -> CoreResult<Table>,
    ) -> CoreResult<Arc<Blob>> {
        if let Some(blob) = self.known_blobs().get(&name) {
            return Ok(Arc::clone(blob));
        }
        // Its table may have to be fetched, for which nobody else waits.
        let blob = Blob::open(&self.blobs_directory(), name, table)?;
        // Another disk with it may have been quicker.
        let mut blobs = self.known_blobs();
        let blob = blobs.entry(name).or_insert_with(|| Arc::new(blob));
        Ok(Arc::clone(blob))
    }

    fn table(&self, digest: [u8; 32]) -> CoreResult<Table> {
        let name = Name::Table(digest);
        let open = |bytes: &[u8]| Table::open(&name.to_string(), bytes, digest);
        self.fetcher
            .get(name, table::BYTES_MAX, Patience::Deadline, open)
            .map_err(refused)
    }

    fn disk(&self, chain_id: Digest) -> PathBuf {
        self.root.join(DISKS).join(chain_id.to_string())
    }

    fn blobs_directory(&self) -> PathBuf {
        self.root.join(BLOBS)
    }

    fn known_blobs(&self) -> MutexGuard<'_, HashMap<[u8; 32], Arc<Blob>>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opening(&self) -> MutexGuard<'_, Vec<Left>> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<SnapshotId, Digest>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The manifest in the directory of a disk, and the bytes that were signed.
pub(super) fn kept(
    directory: &Path,
    chain_id: Digest,
    keys: &[PublicKey],
) -> Result<Option<(Manifest, Vec<u8>)>> {
    let path = directory.join("manifest");
    let Some(bytes) = files::read(&path, signature::BYTES_MAX)? else {
        return Ok(None);
    };
    let manifest = signature::open(&bytes, chain_id, keys)?;
    Ok(Some((manifest, bytes)))
}

/// What is below a directory under the name of a digest.
pub(super) fn directories(path: &Path) -> CoreResult<Vec<(PathBuf, Digest)>> {
    let failed = || CoreError::io("list", path);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if let Some(name) = entry.file_name().to_str().and_then(digest) {
            found.push((entry.path(), name));
        }
    }
    Ok(found)
}
