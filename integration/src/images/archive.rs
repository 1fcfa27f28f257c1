//! An OCI image layout in one tar file, as `ctr images import` and every other tool takes it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use super::layer::Layer;

/// What an image consists of.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    /// Its full name with tag.
    pub reference: &'a str,
    /// Lowest first.
    pub layers: &'a [Layer],
    /// The program it runs when nothing else is asked for.
    pub command: &'a str,
}

/// Blobs by digest, in files until the archive is written.
struct Blobs {
    directory: tempfile::TempDir,
    files: BTreeMap<String, PathBuf>,
}

/// Writes the archive.
pub fn write(image: &Description<'_>, path: &Path) -> Result<()> {
    let parent = path.parent().context("an archive lies in a directory")?;
    let mut blobs = Blobs {
        directory: tempfile::tempdir_in(parent)?,
        files: BTreeMap::new(),
    };
    let mut layers = Vec::new();
    for layer in image.layers {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        layers.push(blobs.add(media_type, |out| layer.write(out))?);
    }
    let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": image.command.split(' ').collect::<Vec<_>>(),
        },
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let config = blobs.add_json("application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut manifest = blobs.add_json("application/vnd.oci.image.manifest.v1+json", &manifest)?;
    let tag = image.reference.rsplit(':').next().unwrap_or_default();
    manifest["annotations"] = json!({
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    blobs.write(&index, path)?;
    Ok(blobs.directory.close()?)
}

/// The architecture of this machine as Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Blobs {
    /// Stores a blob; its descriptor comes back.
    fn add(
        &mut self,
        media_type: &str,
        write: impl FnOnce(&mut Hashing<BufWriter<File>>) -> Result<()>,
    ) -> Result<Value> {
        let path = self.directory.path().join(self.files.len().to_string());
        let mut out = Hashing {
            out: BufWriter::with_capacity(1 << 20, File::create(&path)?),
            hash: Sha256::new(),
            length_bytes: 0,
        };
        write(&mut out)?;
        out.flush()?;
        let digest = format!("{:x}", out.hash.finalize());
        self.files.insert(digest.clone(), path);
        Ok(json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": out.length_bytes,
        }))
    }

    fn add_json(&mut self, media_type: &str, value: &Value) -> Result<Value> {
        self.add(media_type, |out| {
            Ok(out.write_all(&serde_json::to_vec(value)?)?)
        })
    }

    fn write(&self, index: &Value, path: &Path) -> Result<()> {
        let mut archive = Builder::new(BufWriter::new(File::create(path)?));
        append(
            &mut archive,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        append(&mut archive, "index.json", &serde_json::to_vec(index)?)?;
        for (digest, blob) in &self.files {
            let length_bytes = fs::metadata(blob)?.len();
            let mut header = header(length_bytes);
            let name = format!("blobs/sha256/{digest}");
            archive.append_data(&mut header, name, File::open(blob)?)?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

fn append(archive: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(u64::try_from(bytes.len())?);
    Ok(archive.append_data(&mut header, name, bytes)?)
}

fn header(length_bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(length_bytes);
    header
}

/// Counts and hashes what passes.
struct Hashing<W> {
    out: W,
    hash: Sha256,
    length_bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.length_bytes += u64::try_from(count).expect("a count fits 64 bits");
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
