//! What operators ask of disks: to have them here whole, to look whether they are right, and to take away what nobody uses.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use disk::{BLOCK_BYTES, Digest};
use snapshot_core::{Error as CoreError, Result as CoreResult};

use super::{DISKS, Disks, METADATA, directories};
use crate::{
    chunk::ChunkId,
    host::{
        blob::Blob, client::Patience, eviction::Eviction, fetcher::refused, files, lazy::Pace, pins,
    },
    manifest::Manifest,
    table::{Piece, Table},
};

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::host) struct Checked {
    /// Chunks.
    pub(in crate::host) chunks: u64,
    /// Bytes that they have.
    pub(in crate::host) bytes: u64,
    /// Those that were not what their digests say.
    pub(in crate::host) damaged: u64,
    /// Those of them that are right again.
    pub(in crate::host) repaired: u64,
    /// What is left to be done about the last of them.
    pub(in crate::host) why: Option<String>,
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::host) struct Gone {
    /// Bytes of the host's disk.
    pub(in crate::host) bytes: u64,
    /// Chunks that had them.
    pub(in crate::host) chunks: u64,
    /// Disks of which something went.
    pub(in crate::host) disks: u64,
}

/// Whether somebody who asked is there still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Heard {
    /// It goes on.
    Still,
    /// It ends.
    NoMore,
}

impl Disks {
    /// Fetches a disk whole; `told` hears of how many chunks how many are here.
    ///
    /// # Errors
    /// [`CoreError::Precondition`] for a disk that no snapshot stands on; what keeps it from being fetched.
    pub(in crate::host) fn warm(
        &self,
        chain_id: Digest,
        mut told: impl FnMut(usize, usize) -> Heard,
    ) -> CoreResult<()> {
        if !self.has(chain_id) {
            return Err(not_here(chain_id));
        }
        let manifest = self.manifest(chain_id).map_err(refused)?;
        self.metadata(chain_id, &manifest)?;
        let blobs = manifest.devices.iter();
        let blobs = blobs.map(|device| self.blob(device.table, device.blocks));
        let blobs = blobs.collect::<CoreResult<Vec<_>>>()?;
        self.still_has(chain_id, &blobs)?;
        let mut tell = || {
            let counts = blobs.iter().map(|blob| blob.chunks());
            let (all, here) = counts.fold((0, 0), |(all, here), of| (all + of.0, here + of.1));
            match self.fetcher.room.is_ending() {
                true => Heard::NoMore,
                false => told(all, here),
            }
        };
        for blob in &blobs {
            // As long as it is filled, nothing of it goes.
            let _stays = blob.begin_mounting();
            if tell() == Heard::NoMore {
                return Ok(());
            }
            let threads = self.fetches_max;
            blob.fill_all_while(threads, &*self.fetcher, || tell() == Heard::Still)?;
        }
        self.attach.settle(&blobs);
        tell();
        Ok(())
    }

    /// Refuses a disk whose last snapshot was removed while these blobs of it were opened, and takes away what has come of it again.
    fn still_has(&self, chain_id: Digest, blobs: &[Arc<Blob>]) -> CoreResult<()> {
        let uses = self.uses();
        if uses.has_disk(chain_id) {
            return Ok(());
        }
        files::remove_directory(&self.disk(chain_id))?;
        for blob in blobs.iter().filter(|blob| !uses.has_blob(blob.name())) {
            self.remove_blob(blob.name())?;
        }
        Err(not_here(chain_id))
    }

    /// A blob that is here; none where no disk has it any more, so that it is not made again beside its removal, or its table is
    /// damaged.
    fn blob_here(&self, name: [u8; 32]) -> Option<Arc<Blob>> {
        let uses = self.uses();
        // Also of a disk of which it was not known at the start what it needs.
        let known = self.known_blobs().get(&name).cloned();
        let path = self.blobs_directory().join(Digest(name).to_string());
        if known.is_some() || !uses.has_blob(name) || !path.exists() {
            return known;
        }
        let missing = || Err(CoreError::DataLoss("its table is damaged".to_owned()));
        self.blob_with(name, missing).ok()
    }

    /// Reads all that is here of these blobs, or of all, and fetches what is damaged again; `told` hears of it now and then.
    ///
    /// # Errors
    /// What keeps the cache from being read.
    pub(in crate::host) fn verify(
        &self,
        only: &[Digest],
        mut told: impl FnMut(&Checked) -> Heard,
    ) -> CoreResult<Checked> {
        let mut checked = Checked::default();
        let mut blobs = BTreeSet::new();
        for (_, chain_id) in directories(&self.root.join(DISKS))? {
            if !only.is_empty() && !only.contains(&chain_id) {
                continue;
            }
            // One that no trusted key has signed is asked for anew when it is mounted.
            let Ok(Some((manifest, _))) = self.kept(chain_id) else {
                continue;
            };
            self.verify_metadata(chain_id, &manifest, &mut checked)?;
            if self.fetcher.room.is_ending() || told(&checked) == Heard::NoMore {
                return Ok(checked);
            }
            blobs.extend(manifest.devices.iter().map(|device| device.table));
        }
        for name in blobs {
            let Some(blob) = self.blob_here(name) else {
                continue;
            };
            for index in 0..blob.pieces() {
                let Some(is_right) = blob.is_right(index)? else {
                    continue;
                };
                checked.chunks += 1;
                checked.bytes += blob.piece_bytes(index);
                if !is_right {
                    self.repair(&blob, index, &mut checked)?;
                }
                if self.fetcher.room.is_ending() || told(&checked) == Heard::NoMore {
                    return Ok(checked);
                }
            }
        }
        told(&checked);
        Ok(checked)
    }

    /// Reads all that is here, so fast and no faster, and notes when that was.
    pub(in crate::host) fn scrub(&self, bytes_per_second: u64, mark: &Path) {
        let mut pace = Pace::new(bytes_per_second);
        let mut read: u64 = 0;
        let verified = self.verify(&[], |checked| {
            pace.took(checked.bytes - read);
            read = checked.bytes;
            let left = pace.left().unwrap_or_default();
            if self.fetcher.room.is_ending_within(left) {
                return Heard::NoMore;
            }
            Heard::Still
        });
        let noted = verified.and_then(|checked| {
            let (chunks, damaged) = (checked.chunks, checked.damaged);
            tracing::info!(chunks, damaged, "the cache was compared with its digests");
            match self.fetcher.room.is_ending() {
                true => Ok(()),
                false => files::replace(mark, b""),
            }
        });
        if let Err(error) = noted {
            let why = error.in_one_line();
            tracing::error!(why, "the cache cannot be compared with its digests");
        }
    }

    /// A chunk that is damaged is hidden from readers, if they can be told of, and fetched again.
    fn repair(&self, blob: &Arc<Blob>, index: usize, checked: &mut Checked) -> CoreResult<()> {
        checked.damaged += 1;
        self.measured.cache_damaged();
        let object = Digest(blob.name());
        tracing::error!(blob = %object, chunk = index, "a chunk in the cache is damaged");
        let hidden = self.attach.hide(blob, &[index], blob.mountings())?;
        let fetched = match hidden.filter(|hidden| !hidden.pieces().is_empty()) {
            Some(hidden) => {
                hidden.give_up()?;
                let filled = blob.fill_piece(index, &*self.fetcher, Patience::Deadline);
                filled.map(|()| true)
            }
            // Somebody has it open of whom nobody can be told, or is about to.
            None => blob.replace(index, &*self.fetcher),
        };
        self.attach.settle(std::slice::from_ref(blob));
        let left = match fetched {
            Ok(false) => {
                Some("it was being taken away or fetched meanwhile: verify it again".to_owned())
            }
            Ok(true) => {
                checked.repaired += 1;
                match Eviction::new(&*self.attach, &self.looking)?.forget_in_memory(blob, index) {
                    true => None,
                    false => Some(
                        "it was fetched again; who has it in memory has to be started anew"
                            .to_owned(),
                    ),
                }
            }
            Err(error) => Some(error.in_one_line()),
        };
        if let Some(why) = left {
            tracing::error!(blob = %object, chunk = index, why, "a damaged chunk needs somebody to act");
            checked.why = Some(format!("chunk {index} of blob {object}: {why}"));
        }
        Ok(())
    }

    /// The metadata of a disk; what is damaged is fetched again, for who mounts it next.
    fn verify_metadata(
        &self,
        chain_id: Digest,
        manifest: &Manifest,
        checked: &mut Checked,
    ) -> CoreResult<()> {
        let path = self.disk(chain_id).join(METADATA);
        let Ok(file) = File::open(&path) else {
            return Ok(());
        };
        let table = &manifest.devices_metadata;
        checked.chunks += table.chunks().count() as u64;
        checked.bytes += u64::from(table.blocks()) * BLOCK_BYTES;
        if is_as_its_table_says(file, table) {
            return Ok(());
        }
        checked.damaged += 1;
        self.measured.cache_damaged();
        tracing::error!(%chain_id, "the metadata of a disk is damaged");
        fs::remove_file(&path).map_err(CoreError::io("delete", &path))?;
        match self.metadata(chain_id, manifest) {
            Ok(_) => {
                checked.repaired += 1;
                checked.why = Some(format!(
                    "metadata of disk sha256:{chain_id}: it was fetched again; who runs on it has to be started anew"
                ));
            }
            Err(error) => {
                let why = error.in_one_line();
                checked.why = Some(format!("metadata of disk sha256:{chain_id}: {why}"));
            }
        }
        Ok(())
    }

    /// Takes out of the cache what only disks have that are not in `used`, and that nobody has pinned or mounted; or only says
    /// what would go.
    ///
    /// # Errors
    /// What keeps something from going; other things may have gone.
    pub(in crate::host) fn take_unused(
        &self,
        used: &BTreeSet<Digest>,
        sweep: Sweep,
    ) -> CoreResult<Gone> {
        let mut stays = self.pinned_blobs()?;
        let pinned = pins::pinned(&self.root)?;
        let mut unused = Vec::new();
        for (directory, chain_id) in directories(&self.root.join(DISKS))? {
            if used.contains(&chain_id) {
                stays.extend(self.blobs_that_stay(chain_id, "is used")?);
            } else if !pinned.contains(&chain_id)
                && let Ok(Some((manifest, _))) = self.kept(chain_id)
            {
                unused.push((directory, manifest));
            }
        }
        let mut gone = Gone::default();
        let mut taken = BTreeSet::new();
        let mut left = Vec::new();
        for (directory, manifest) in unused {
            let before = gone.bytes;
            for device in &manifest.devices {
                if !stays.contains(&device.table) && taken.insert(device.table) {
                    self.take_blob(device.table, sweep, &mut gone)?;
                }
            }
            left.push((directory.join(METADATA), gone.bytes > before));
        }
        // Not before: blobs take long, and a disk may have been mounted meanwhile.
        let sources = match sweep {
            Sweep::Remove => sources_of_mounts()?,
            Sweep::Count => BTreeSet::new(),
        };
        for (metadata, mut has_less) in left {
            // Before it goes it is unmounted, if it can be.
            if let Ok(about) = fs::metadata(&metadata)
                && !sources.contains(&metadata)
            {
                let bytes = about.blocks() * 512;
                gone.bytes += bytes;
                has_less |= bytes > 0;
                if sweep == Sweep::Remove {
                    fs::remove_file(&metadata).map_err(CoreError::io("delete", &metadata))?;
                }
            }
            gone.disks += u64::from(has_less);
        }
        if sweep == Sweep::Remove {
            self.measure();
        }
        Ok(gone)
    }

    /// All chunks of a blob that nobody has open.
    fn take_blob(&self, name: [u8; 32], sweep: Sweep, gone: &mut Gone) -> CoreResult<()> {
        let Some(blob) = self.blob_here(name) else {
            return Ok(());
        };
        let mountings = blob.mountings();
        let is_open = blob.told().is_none_or(|mounts| !mounts.is_empty());
        if is_open && sweep == Sweep::Remove {
            return Ok(());
        }
        blob.find_more();
        let idle: Vec<usize> = blob.idle().into_iter().map(|idle| idle.index).collect();
        if sweep == Sweep::Count {
            gone.bytes += blob.allocated_bytes()?;
            gone.chunks += idle.len() as u64;
            return Ok(());
        }
        if let Some(hidden) = self.attach.hide(&blob, &idle, mountings)? {
            let (bytes, chunks) = hidden.take_away()?;
            gone.bytes += bytes;
            gone.chunks += chunks as u64;
        }
        Ok(())
    }
}

fn not_here(chain_id: Digest) -> CoreError {
    CoreError::Precondition(format!(
        "disk sha256:{chain_id} is not on this host: pull its image first"
    ))
}

/// Whether something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Sweep {
    /// It is counted.
    Count,
    /// It goes.
    Remove,
}

fn is_as_its_table_says(mut file: File, table: &Table) -> bool {
    table.pieces().iter().all(|piece| {
        let bytes = u64::from(piece.blocks()) * BLOCK_BYTES;
        let mut contents = Vec::new();
        let read = (&mut file).take(bytes).read_to_end(&mut contents);
        if read.ok() != usize::try_from(bytes).ok() {
            return false;
        }
        match piece {
            Piece::Chunk { id, .. } => ChunkId::of(&contents) == *id,
            Piece::Hole { .. } => contents.iter().all(|byte| *byte == 0),
        }
    })
}

fn sources_of_mounts() -> CoreResult<BTreeSet<PathBuf>> {
    let entries =
        mounts::mountinfo::read().map_err(CoreError::io("read", "/proc/self/mountinfo"))?;
    let sources = entries.into_iter().map(|entry| entry.source);
    Ok(sources.map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use snapshot_core::SnapshotId;

    use super::*;
    use crate::host::{
        attach::{Carrier, Copy},
        client::Client,
        config::StoreConfig,
        disks::BLOBS,
        fetcher::Fetcher,
        metrics::Measured,
        room::Room,
    };
    use crate::{manifest::Layer, signature::PrivateKey};

    fn key() -> PrivateKey {
        PrivateKey::of(&[7; 32])
    }

    /// Disks of a store that does not answer.
    fn disks(root: &Path) -> Disks {
        let config = StoreConfig {
            urls: vec!["http://127.0.0.1:1".to_owned()],
            ..StoreConfig::default()
        };
        let measured = Measured::default();
        let client = Client::new(&config, measured.clone()).unwrap();
        let room = Arc::new(Room::new(None));
        let fetcher = Arc::new(Fetcher::new(client, room, measured.clone()));
        let attach = Copy::new(Carrier::Files, Arc::clone(&fetcher), 1, None);
        Disks::open(
            root,
            vec![key().public()],
            fetcher,
            Box::new(attach),
            (measured, 1),
        )
        .unwrap()
    }

    #[test]
    fn a_blob_is_not_made_again_beside_the_removal_of_its_last_disk() {
        let root = tempfile::tempdir().unwrap();
        let disks = disks(root.path());
        let chunk = Piece::Chunk {
            id: ChunkId::of(&[1]),
            blocks: 1,
        };
        let table = Table::new(vec![chunk]).unwrap();
        let (name, chain_id) = (table.digest(), Digest([1; 32]));
        let path = root.path().join(BLOBS).join(Digest(name).to_string());
        disks.uses().begin(SnapshotId(1), chain_id, [name]);
        assert!(disks.blob_here(name).is_none() && !path.exists());
        let open = || disks.blob_with(name, || Ok(table.clone())).unwrap();
        let blob = open();
        assert!(
            disks
                .blob_here(name)
                .is_some_and(|here| Arc::ptr_eq(&here, &blob))
        );
        disks.still_has(chain_id, &[blob]).unwrap();
        disks.end(SnapshotId(1), chain_id).unwrap();
        assert!(disks.blob_here(name).is_none() && !path.exists());
        // Whoever fetched its table meanwhile made it again.
        let blob = open();
        fs::create_dir(disks.disk(chain_id)).unwrap();
        let error = disks.still_has(chain_id, &[blob]).unwrap_err();
        assert!(matches!(error, CoreError::Precondition(_)), "{error}");
        assert!(!path.exists() && !disks.disk(chain_id).exists());
        assert!(disks.known_blobs().is_empty());
    }

    #[test]
    fn who_hears_of_metadata_may_end_it() {
        let root = tempfile::tempdir().unwrap();
        let disks = disks(root.path());
        let contents = [1; 4096];
        let chunk = Piece::Chunk {
            id: ChunkId::of(&contents),
            blocks: 1,
        };
        let table = Table::new(vec![chunk]).unwrap();
        for diff_id in [Digest([1; 32]), Digest([2; 32])] {
            let manifest = Manifest {
                layers: vec![Layer {
                    diff_id,
                    stored: [0; 32],
                }],
                devices_metadata: table.clone(),
                flat_metadata: table.clone(),
                devices: Vec::new(),
            };
            let directory = disks.disk(manifest.chain_id());
            fs::create_dir(&directory).unwrap();
            let signed = key().sign(&manifest).unwrap();
            fs::write(directory.join("manifest"), signed).unwrap();
            fs::write(directory.join(METADATA), contents).unwrap();
        }
        let checked = disks.verify(&[], |_| Heard::NoMore).unwrap();
        assert_eq!((checked.chunks, checked.bytes), (1, 4096));
        let checked = disks.verify(&[], |_| Heard::Still).unwrap();
        assert_eq!((checked.chunks, checked.damaged), (2, 0));
        disks.fetcher.room.end();
        let checked = disks.verify(&[], |_| Heard::Still).unwrap();
        assert_eq!(checked.chunks, 1);
    }
}
