//! What a host has of each disk, read from its root: for an operator, while the daemon runs or not.

use std::{collections::BTreeSet, path::Path};

use disk::{BLOCK_BYTES, Digest};
use mounts::mountinfo;

use super::{
    blob,
    disks::{BLOBS, DISKS, METADATA, cache_bytes, directories, kept},
    files,
    lazy::TRACE,
    pins,
};
use crate::{
    error::{Error, Result},
    manifest::Manifest,
    signature::PublicKey,
    trace::{self, Step, Trace},
};

/// A disk of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStatus {
    /// Its name.
    pub chain_id: Digest,
    /// Layers that it has in one.
    pub layers: usize,
    /// Length of the whole disk in bytes.
    pub bytes: u64,
    /// Chunks of its blobs, and how many of them are here.
    pub chunks: (usize, usize),
    /// Chunks that hosts read first, and how many of them are here; none where no trace was followed.
    pub trace: Option<(usize, usize)>,
    /// Whether it is mounted, as far as its mount says which disk it is of.
    pub is_mounted: bool,
    /// Whether nothing of it goes from the cache.
    pub is_pinned: bool,
}

/// What a host has.
#[derive(Debug)]
pub struct HostStatus {
    /// Its disks; those whose manifests no trusted key has signed are named instead.
    pub disks: Vec<Result<DiskStatus, Error>>,
    /// Bytes that they take of the host's disk.
    pub cache_bytes: u64,
    /// Disks that are pinned and not here.
    pub pinned_elsewhere: Vec<Digest>,
}

/// Of the trace in the directory of a disk.
fn followed(root: &Path, directory: &Path, manifest: &Manifest) -> Option<(usize, usize)> {
    let bytes = files::read(&directory.join(TRACE), trace::BYTES_MAX).ok()??;
    let trace = Trace::decode("trace", &bytes).ok()?;
    let blobs = manifest.devices.iter();
    let blobs = blobs.map(|device| {
        blob::readable(&root.join(BLOBS), device.table)
            .ok()
            .flatten()
    });
    let blobs: Vec<_> = blobs.collect();
    let is_here = |step: &&Step| {
        let [device, piece] = [step.device, step.piece].map(|at| usize::try_from(at).ok());
        let blob = device.and_then(|at| blobs.get(at)).and_then(Option::as_ref);
        let readable = piece.and_then(|at| blob?.get(at));
        readable.copied().unwrap_or_default()
    };
    let here = trace.steps().iter().filter(is_here).count();
    Some((trace.steps().len(), here))
}

/// What is below a root, by these keys.
///
/// # Errors
/// What keeps the root from being read.
pub fn status(root: &Path, keys: &[PublicKey]) -> Result<HostStatus> {
    let root = root.canonicalize().map_err(|source| Error::File {
        doing: "looking for the root",
        path: root.to_owned(),
        source,
    })?;
    let entries = mountinfo::read().map_err(|source| Error::File {
        doing: "reading",
        path: "/proc/self/mountinfo".into(),
        source,
    })?;
    let sources: BTreeSet<String> = entries.into_iter().map(|entry| entry.source).collect();
    let mut pinned = pins::pinned(&root)?;
    let cache_bytes = cache_bytes(&root)?;
    let mut found = directories(&root.join(DISKS))?;
    found.sort_by_key(|(_, chain_id)| *chain_id);
    let disks = found.into_iter().map(|(directory, chain_id)| {
        let is_pinned = pinned.remove(&chain_id);
        let object = format!("disks/{chain_id}");
        let kept = kept(&directory, chain_id, keys)?;
        let (manifest, _) = kept.ok_or(Error::Absent { object })?;
        let mut chunks = (0, 0);
        for device in &manifest.devices {
            // A blob of which nothing was asked for yet has no table here.
            let (all, here) = blob::look(&root.join(BLOBS), device.table)?.unwrap_or_default();
            chunks = (chunks.0 + all, chunks.1 + here);
        }
        let metadata = directory.join(METADATA);
        Ok(DiskStatus {
            chain_id,
            layers: manifest.layers.len(),
            bytes: manifest.flat_blocks() * BLOCK_BYTES,
            chunks,
            trace: followed(&root, &directory, &manifest),
            is_mounted: sources.contains(&metadata.display().to_string()),
            is_pinned,
        })
    });
    Ok(HostStatus {
        disks: disks.collect(),
        cache_bytes,
        pinned_elsewhere: pinned.into_iter().collect(),
    })
}
