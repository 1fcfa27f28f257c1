//! OCI layouts in directories and tars, right or wrong as a test wants them.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use disk::{Digest, Form, Image, Layer, Limits, Tree};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use snapshotter_remote::manifest::chain_ids;

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// Files of a layer: name and contents.
pub(crate) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        builder.append_data(&mut header, name, *contents).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that do not compress and that no other seed gives.
pub(crate) fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[seed]);
    hasher.finalize_xof().fill(&mut out);
    out
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// A layout before it is written.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifests: Vec<Value>,
}

/// What the config says of each layer, and the blob that stands for it.
pub(crate) type Packed = (Digest, Vec<u8>);

/// Makes a blob of a tar.
pub(crate) type Pack = fn(&[u8]) -> Vec<u8>;

/// Each layer as its diffID and packed by one of these.
pub(crate) fn packed(layers: &[Vec<u8>], how: &[Pack]) -> Vec<Packed> {
    let how = how.iter().cycle();
    let layers = layers.iter().zip(how);
    layers.map(|(tar, how)| (digest(tar), how(tar))).collect()
}

impl Layout {
    pub(crate) fn of(layers: &[Packed]) -> Self {
        let mut layout = Self::default();
        layout.add("test", "amd64", layers);
        layout
    }

    pub(crate) fn add(&mut self, name: &str, architecture: &str, layers: &[Packed]) {
        let diff_ids = layers
            .iter()
            .map(|(diff_id, _)| format!("sha256:{diff_id}"));
        let config = json!({
            "os": "linux",
            "architecture": architecture,
            "rootfs": { "type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>() },
        });
        let config = self.document(&config);
        let layers = layers.iter().map(|(_, blob)| self.blob(blob.clone()));
        let layers: Vec<Value> = layers.collect();
        let mut manifest = self.document(&json!({ "config": config, "layers": layers }));
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        self.manifests.push(manifest);
    }

    pub(crate) fn document(&mut self, value: &Value) -> Value {
        self.blob(serde_json::to_vec(value).unwrap())
    }

    fn blob(&mut self, bytes: Vec<u8>) -> Value {
        let name = digest(&bytes).to_string();
        let descriptor = json!({ "digest": format!("sha256:{name}"), "size": bytes.len() });
        self.blobs.insert(name, bytes);
        descriptor
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let index = serde_json::to_vec(&index).unwrap();
        let mut files = vec![("index.json".to_owned(), index)];
        let blobs = self.blobs.iter();
        files.extend(blobs.map(|(name, bytes)| (format!("blobs/sha256/{name}"), bytes.clone())));
        files
    }

    pub(crate) fn directory(&self, path: &Path) {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        for (name, bytes) in self.files() {
            fs::write(path.join(name), bytes).unwrap();
        }
    }

    pub(crate) fn archive(&self, path: &Path) {
        let files = self.files();
        let files: Vec<_> = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), &bytes[..]))
            .collect();
        fs::write(path, layer(&files)).unwrap();
    }
}

/// The flat disk that the crate `disk` makes of these layers.
pub(crate) fn flat(layers: &[Vec<u8>]) -> (Digest, Vec<u8>) {
    let (mut tree, mut blobs) = (Tree::new(), BTreeMap::new());
    for tar in layers {
        let mut blob = std::io::Cursor::new(Vec::new());
        let layer = Layer::read(&tar[..], &mut blob, &Limits::GENEROUS).unwrap();
        tree.apply(&layer, digest(tar)).unwrap();
        blobs.insert(digest(tar), blob.into_inner());
    }
    let diff_ids: Vec<Digest> = layers.iter().map(|tar| digest(tar)).collect();
    let chain_id = *chain_ids(&diff_ids).last().unwrap();
    let mut out = Vec::new();
    let image = Image::of(&tree, chain_id, Form::Flat).unwrap();
    image
        .write_with_blobs(&mut out, |diff_id| Ok(&blobs[&diff_id][..]))
        .unwrap();
    (chain_id, out)
}
