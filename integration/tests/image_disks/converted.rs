//! Layers converted into files: blobs, metadata, a disk in one piece.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use disk::{Digest, Form, Image, Layer, Limits, Tree};
use integration::images;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A converted image.
#[derive(Debug)]
pub(crate) struct Converted {
    directory: tempfile::TempDir,
    pub(crate) tree: Tree,
    chain_id: Option<Digest>,
}

/// Hashes what is read.
struct Hashing<R>(R, Sha256);

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.update(&buffer[..count]);
        Ok(count)
    }
}

impl Converted {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            directory: tempfile::tempdir()?,
            tree: Tree::new(),
            chain_id: None,
        })
    }

    /// The tars of layers, lowest first.
    pub(crate) fn of<R: Read>(tars: impl IntoIterator<Item = R>) -> Result<Self> {
        let mut this = Self::new()?;
        for tar in tars {
            this.add(tar)?;
        }
        Ok(this)
    }

    /// An image of the harness.
    pub(crate) fn image(image: images::Image) -> Result<Self> {
        image_of(&image.archive()?)
    }

    /// Converts the next layer; its diffID comes back.
    pub(crate) fn add(&mut self, tar: impl Read) -> Result<Digest> {
        let unnamed = self.directory.path().join("unnamed");
        let blob = File::create(&unnamed)?;
        let mut tar = Hashing(tar, Sha256::new());
        let layer = Layer::read(&mut tar, blob, &Limits::GENEROUS)?;
        let diff_id = Digest(tar.1.finalize().into());
        std::fs::rename(unnamed, self.blob(diff_id))?;
        self.tree.apply(&layer, diff_id)?;
        self.chain_id = Some(match self.chain_id {
            None => diff_id,
            Some(below) => {
                let text = format!("sha256:{below} sha256:{diff_id}");
                Digest(Sha256::digest(text).into())
            }
        });
        Ok(diff_id)
    }

    /// Where a layer's blob is.
    pub(crate) fn blob(&self, diff_id: Digest) -> PathBuf {
        self.directory.path().join(diff_id.to_string())
    }

    /// Metadata, and the blobs it is mounted with.
    pub(crate) fn devices(&self) -> Result<(PathBuf, Vec<PathBuf>)> {
        let image = Image::of(&self.tree, self.name(), Form::Devices)?;
        let path = self.directory.path().join("metadata");
        image.write(File::create(&path)?)?;
        let blobs = image.blobs().map(|blob| self.blob(blob.diff_id));
        Ok((path, blobs.collect()))
    }

    /// A disk in one piece.
    pub(crate) fn flat(&self) -> Result<PathBuf> {
        let image = Image::of(&self.tree, self.name(), Form::Flat)?;
        let path = self.directory.path().join("flat.erofs");
        let mut file = File::create(&path)?;
        image.write_with_blobs(&mut file, |diff_id| File::open(self.blob(diff_id)))?;
        ensure!(
            file.metadata()?.len() == image.bytes(),
            "its length is another"
        );
        Ok(path)
    }

    fn name(&self) -> Digest {
        self.chain_id.unwrap_or(Digest([0; 32]))
    }
}

/// The image of an archive.
pub(crate) fn image_of(archive: &Path) -> Result<Converted> {
    let archive = Archive::open(archive)?;
    let mut converted = Converted::new()?;
    for digest in archive.layers()? {
        let read = converted.add(archive.blob(&digest)?)?;
        // The reader has seen the whole layer, or the digest would be another.
        ensure!(
            digest == format!("sha256:{read}"),
            "{digest} was read as {read}"
        );
    }
    Ok(converted)
}

/// An OCI image layout in a tar, read in place.
struct Archive {
    path: PathBuf,
    /// Offset and length of each file.
    files: BTreeMap<PathBuf, (u64, u64)>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(path)?);
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let place = (entry.raw_file_position(), entry.size());
            files.insert(entry.path()?.into_owned(), place);
        }
        Ok(Self {
            path: path.to_owned(),
            files,
        })
    }

    fn file(&self, name: &str) -> Result<impl Read + use<>> {
        let (offset, length) = self
            .files
            .get(Path::new(name))
            .context("a file is missing")?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(*offset))?;
        Ok(BufReader::new(file).take(*length))
    }

    fn blob(&self, digest: &str) -> Result<impl Read + use<>> {
        self.file(&format!("blobs/{}", digest.replace(':', "/")))
    }

    /// Digests of the layers, lowest first; none is compressed, so these are diffIDs.
    fn layers(&self) -> Result<Vec<String>> {
        let index: Value = serde_json::from_reader(self.file("index.json")?)?;
        let manifest = index["manifests"][0]["digest"]
            .as_str()
            .context("a manifest")?;
        let manifest: Value = serde_json::from_reader(self.blob(manifest)?)?;
        let layers = manifest["layers"].as_array().context("layers")?;
        layers
            .iter()
            .map(|layer| Ok(layer["digest"].as_str().context("a digest")?.to_owned()))
            .collect()
    }
}
