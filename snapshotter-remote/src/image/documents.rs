//! The JSON documents of an image, as far as a disk depends on them (image-spec: image-index.md,
//! manifest.md, config.md). Whatever else they say is left alone.

use std::collections::BTreeMap;

use disk::Digest;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};
use sha2::{Digest as _, Sha256};

use crate::signature::digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Length of a document.
pub(super) const BYTES_MAX: u64 = 4 << 20;

/// What an index or a manifest says of something else.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    #[serde(deserialize_with = "sha256")]
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) platform: Option<DescriptorPlatform>,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// For which machines it is.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct DescriptorPlatform {
    pub(super) os: String,
    pub(super) architecture: String,
}

/// Several manifests.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

/// What a document is of which no descriptor tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kind {
    #[serde(default)]
    media_type: String,
    manifests: Option<IgnoredAny>,
}

/// One image.
#[derive(Debug, Deserialize)]
pub(super) struct ImageManifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What an image is.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    pub(super) rootfs: RootFs,
}

/// Its layers.
#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<DiffId>,
}

/// The SHA-256 of an uncompressed layer.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct DiffId(#[serde(deserialize_with = "sha256")] pub(super) Digest);

impl Kind {
    /// Its descriptor, of these bytes.
    pub(super) fn of(self, bytes: &[u8]) -> Descriptor {
        let media_type = match self.manifests {
            // Of OCI's documents the type may be left out.
            Some(_) if self.media_type.is_empty() => INDEX.to_owned(),
            _ => self.media_type,
        };
        Descriptor {
            media_type,
            digest: Digest(Sha256::digest(bytes).into()),
            size: bytes.len() as u64,
            platform: None,
            annotations: None,
        }
    }
}

impl Descriptor {
    /// Whether it is of several manifests again.
    pub(super) fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            INDEX | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    /// What tools call the image.
    pub(super) fn name(&self) -> Option<&str> {
        let keys = [
            "io.containerd.image.name",
            "org.opencontainers.image.ref.name",
        ];
        let annotations = self.annotations.as_ref()?;
        keys.iter()
            .find_map(|&key| annotations.get(key))
            .map(String::as_str)
    }
}

fn sha256<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    let found = text.strip_prefix("sha256:").and_then(digest);
    found.ok_or_else(|| D::Error::custom("a digest that is not sha256: and 64 digits"))
}
