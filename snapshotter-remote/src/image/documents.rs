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
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Length of a document.
pub(crate) const BYTES_MAX: u64 = 4 << 20;

/// What an index or a manifest says of something else.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(deserialize_with = "sha256")]
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<DescriptorPlatform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// For which machines it is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DescriptorPlatform {
    pub(crate) os: String,
    pub(crate) architecture: String,
}

/// Several manifests.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a document is of which no descriptor tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kind {
    #[serde(default)]
    media_type: String,
    manifests: Option<IgnoredAny>,
}

/// One image.
#[derive(Debug, Deserialize)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What an image is.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    pub(crate) rootfs: RootFs,
}

/// Its layers.
#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    pub(crate) diff_ids: Vec<DiffId>,
}

/// The SHA-256 of an uncompressed layer.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct DiffId(#[serde(deserialize_with = "sha256")] pub(crate) Digest);

impl Kind {
    /// Its descriptor, of these bytes.
    pub(crate) fn of(self, bytes: &[u8]) -> Descriptor {
        let media_type = match self.manifests {
            // Of OCI's documents the type may be left out.
            Some(_) if self.media_type.is_empty() => INDEX.to_owned(),
            None if self.media_type.is_empty() => MANIFEST.to_owned(),
            _ => self.media_type,
        };
        let digest = Digest(Sha256::digest(bytes).into());
        Descriptor::of(media_type, digest, bytes.len() as u64)
    }
}

impl Descriptor {
    /// Of something that is known.
    pub(crate) fn of(media_type: String, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            platform: None,
            annotations: None,
        }
    }

    /// Whether it is of several manifests again.
    pub(crate) fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            INDEX | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    /// What tools call the image.
    pub(crate) fn name(&self) -> Option<&str> {
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
