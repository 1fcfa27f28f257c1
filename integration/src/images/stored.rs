//! An image's archive as a registry has it: blobs by digest, and which of them is the manifest.

use std::{collections::BTreeMap, fs::File, io::Read, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

/// An OCI archive that was looked through.
#[derive(Debug)]
pub struct Stored {
    file: File,
    /// By digest, `sha256:...`: where in the archive, and how long.
    blobs: BTreeMap<String, (u64, u64)>,
    /// The digest of the manifest.
    pub manifest: String,
}

impl Stored {
    /// The archive in that file.
    pub fn of(path: &Path) -> Result<Self> {
        let mut blobs = BTreeMap::new();
        let mut index = Vec::new();
        let mut archive = tar::Archive::new(File::open(path)?);
        for entry in archive.entries_with_seek()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            if let Some(digest) = name.strip_prefix("blobs/sha256/") {
                let place = (entry.raw_file_position(), entry.size());
                blobs.insert(format!("sha256:{digest}"), place);
            } else if name == "index.json" {
                entry.read_to_end(&mut index)?;
            }
        }
        let index: Value = serde_json::from_slice(&index)?;
        let manifest = index["manifests"][0]["digest"].as_str();
        let manifest = manifest.context("an index names a manifest")?.to_owned();
        Ok(Self {
            file: File::open(path)?,
            blobs,
            manifest,
        })
    }

    /// Digests of all blobs.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        self.blobs.keys().map(String::as_str)
    }

    /// The bytes of a blob; none where it is not in it.
    pub fn blob(&self, digest: &str) -> Result<Option<Vec<u8>>> {
        let Some((at, bytes)) = self.blobs.get(digest) else {
            return Ok(None);
        };
        let mut contents = vec![0; usize::try_from(*bytes)?];
        self.file.read_exact_at(&mut contents, *at)?;
        Ok(Some(contents))
    }
}
