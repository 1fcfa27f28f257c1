//! A pull from its beginning to its end.

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use disk::Digest;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};

use super::{
    containerd::{Containerd, Labels, named},
    layers,
    registry::Registry,
};
use crate::{
    error::{Error, Result},
    image::{self, Access, Config, Descriptor, ImageManifest, ImageName, Index, Kind, Platform},
    manifest::{LAYERS_MAX, chain_ids},
    signature::digest,
};

/// An image in containerd.
#[derive(Debug, Clone)]
pub struct Place {
    /// The image.
    pub image: ImageName,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// Its namespace.
    pub namespace: String,
    /// For which machines.
    pub platform: Platform,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Pull {
    /// What comes where.
    pub place: Place,
    /// The name that containerd has for our daemon.
    pub snapshotter: String,
    /// How its registry is asked.
    pub access: Access,
}

/// What was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its name in containerd.
    pub name: String,
    /// Of its manifest, or of several of them.
    pub digest: Digest,
    /// The chainID of its last layer; none of an image without layers.
    pub chain_id: Option<Digest>,
    /// Layers that containerd had.
    pub known: usize,
    /// Layers that the snapshotter has as disks.
    pub ready: usize,
    /// Layers that were fetched and unpacked.
    pub unpacked: usize,
}

/// The documents of an image, as they came.
struct Documents {
    /// Several manifests, if the name stands for several.
    index: Option<(Descriptor, Vec<u8>, Index)>,
    manifest: (Descriptor, Vec<u8>, ImageManifest),
    config: (Vec<u8>, Config),
}

/// Pulls an image; an image of that name is that one then.
///
/// # Errors
/// [`Error::Registry`] and [`Error::Image`] for what the registry answers; [`Error::Setting`] for what containerd does.
pub fn pull(asked: &Pull) -> Result<Pulled> {
    // It ends outside of the event loop: it has one of its own.
    let client = image::Registry::of(asked.place.image.clone(), &asked.access)?;
    let registry = Registry::new(client);
    runtime()?.block_on(async {
        let documents = Documents::of(&registry, &asked.place.platform).await?;
        let lease = lease_id();
        let containerd =
            Containerd::connect(&asked.place.containerd, &asked.place.namespace).await?;
        let containerd = containerd.with_lease(&lease).await?;
        let pulled = Box::pin(put(asked, &containerd, &registry, documents)).await;
        let ended = containerd.end_lease(&lease).await;
        let pulled = pulled?;
        ended?;
        Ok(pulled)
    })
}

/// The chainID of an image that containerd has.
///
/// # Errors
/// [`Error::Setting`] when it has none of that name, or only part of it.
pub fn chain_of_image(asked: &Place) -> Result<Digest> {
    runtime()?.block_on(async {
        let name = asked.image.to_string();
        let containerd = Containerd::connect(&asked.containerd, &asked.namespace).await?;
        let refused = |what: &str| {
            let namespace = &asked.namespace;
            Error::Setting(format!("image {name} of namespace {namespace}: {what}"))
        };
        let Some((media_type, target)) = containerd.image(&name).await? else {
            return Err(refused("containerd has no such image: pull it first"));
        };
        let document = async |digest: Digest| {
            let found = containerd.document(digest).await?;
            found.ok_or_else(|| refused("part of it is not there: pull it again"))
        };
        let unknown = || refused("its digest is not of sha256");
        let target = target
            .strip_prefix("sha256:")
            .and_then(digest)
            .ok_or_else(unknown)?;
        let mut manifest = document(target).await?;
        let descriptor = Descriptor::of(media_type, target, manifest.len() as u64);
        if descriptor.is_index() {
            let index: Index = parsed(&manifest).map_err(|why| refused(&why))?;
            let chosen = chosen(&index, &asked.platform).map_err(|why| refused(&why))?;
            manifest = document(chosen.digest).await?;
        }
        let manifest: ImageManifest = parsed(&manifest).map_err(|why| refused(&why))?;
        let config = document(manifest.config.digest).await?;
        let config: Config = parsed(&config).map_err(|why| refused(&why))?;
        let diff_ids: Vec<Digest> = config.rootfs.diff_ids.iter().map(|id| id.0).collect();
        chain_ids(&diff_ids)
            .pop()
            .ok_or_else(|| refused("it has no layer"))
    })
}

fn runtime() -> Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|source| Error::File {
        doing: "starting the event loop of",
        path: "pull".into(),
        source,
    })
}

fn lease_id() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!(
        "snapshotter-remote-pull-{}-{}",
        now.as_nanos(),
        std::process::id()
    )
}

async fn put(
    asked: &Pull,
    containerd: &Containerd,
    registry: &Registry,
    documents: Documents,
) -> Result<Pulled> {
    let Documents {
        index,
        manifest: (manifest, manifest_bytes, parts),
        config: (config_bytes, config),
    } = documents;
    let diff_ids: Vec<Digest> = config.rootfs.diff_ids.iter().map(|id| id.0).collect();
    let chain_id = chain_ids(&diff_ids).pop();
    let source = source_label(registry.name());
    // What is referred to comes first, so that nothing refers to what may not come.
    let mut labels = Labels::from([source.clone()]);
    if let Some(chain_id) = chain_id {
        let key = format!("containerd.io/gc.ref.snapshot.{}", asked.snapshotter);
        labels.insert(key, named(chain_id));
    }
    let layers: Vec<_> = parts.layers.iter().cloned().zip(diff_ids).collect();
    let made = layers::make(containerd, registry, &asked.snapshotter, &layers).await?;
    containerd
        .put(parts.config.digest, config_bytes, labels)
        .await?;
    let labels = labels_of_manifest(&parts, source.clone());
    containerd
        .put(manifest.digest, manifest_bytes, labels)
        .await?;
    let target = match index {
        Some((descriptor, bytes, index)) => {
            let labels = labels_of_index(&index, source);
            containerd.put(descriptor.digest, bytes, labels).await?;
            descriptor
        }
        None => manifest,
    };
    let name = registry.name().to_string();
    containerd.name_image(&name, &target).await?;
    Ok(Pulled {
        name,
        digest: target.digest,
        chain_id,
        known: made.known,
        ready: made.ready,
        unpacked: made.unpacked,
    })
}

/// By which containerd knows where it may be had again.
fn source_label(name: &ImageName) -> (String, String) {
    let key = format!("containerd.io/distribution.source.{}", name.registry());
    (key, name.repository().to_owned())
}

/// As containerd's own client labels them, so that its collector sees what they need.
fn labels_of_manifest(manifest: &ImageManifest, source: (String, String)) -> Labels {
    let key = |what: &str| format!("containerd.io/gc.ref.content.{what}");
    let mut labels = Labels::from([source]);
    labels.insert(key("config"), named(manifest.config.digest));
    for (index, layer) in manifest.layers.iter().enumerate() {
        labels.insert(key(&format!("l.{index}")), named(layer.digest));
    }
    labels
}

fn labels_of_index(index: &Index, source: (String, String)) -> Labels {
    let key = |index: usize| format!("containerd.io/gc.ref.content.m.{index}");
    let manifests = index.manifests.iter().enumerate();
    let labels = manifests.map(|(index, one)| (key(index), named(one.digest)));
    labels.chain([source]).collect()
}

impl Documents {
    /// Manifest and config for a platform.
    async fn of(registry: &Registry, platform: &Platform) -> Result<Self> {
        let refused = |what: String| registry.not(what);
        let (mut bytes, _digest) = registry.manifest(None).await?;
        let kind: Kind = parsed(&bytes).map_err(refused)?;
        let mut descriptor = kind.of(&bytes);
        let mut index = None;
        if descriptor.is_index() {
            let several: Index = parsed(&bytes).map_err(refused)?;
            let digest = chosen(&several, platform).map_err(refused)?.digest;
            index = Some((descriptor, bytes, several));
            (bytes, _) = registry.manifest(Some(digest)).await?;
            let kind: Kind = parsed(&bytes).map_err(refused)?;
            descriptor = kind.of(&bytes);
        }
        let manifest: ImageManifest = parsed(&bytes).map_err(refused)?;
        let config_bytes = registry.document(&manifest.config).await?;
        let config: Config = parsed(&config_bytes).map_err(refused)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids || layers > LAYERS_MAX {
            return Err(refused(format!(
                "it has {layers} layers and {diff_ids} diffIDs: it needs as many of both, and not more than {LAYERS_MAX}"
            )));
        }
        Ok(Self {
            index,
            manifest: (descriptor, bytes, manifest),
            config: (config_bytes, config),
        })
    }
}

/// The manifest for a platform.
fn chosen<'i>(index: &'i Index, platform: &Platform) -> Result<&'i Descriptor, String> {
    let mut manifests = index.manifests.iter();
    let is_for = |one: &&Descriptor| {
        let of = one.platform.as_ref();
        of.is_some_and(|of| platform.is(&of.os, &of.architecture))
    };
    let found = manifests.find(is_for);
    // One that does not say for what it is, and is alone, is for whoever asks.
    let alone = match &index.manifests[..] {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    found
        .or(alone)
        .ok_or_else(|| format!("it has no image for {platform}"))
}

fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("a document of it: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(byte: u8) -> String {
        named(Digest([byte; 32]))
    }

    #[test]
    fn the_collector_is_told_what_each_document_needs() {
        let text = format!(
            r#"{{"config": {{"digest": "{}", "size": 1}},
               "layers": [{{"digest": "{}", "size": 2}}, {{"digest": "{}", "size": 3}}]}}"#,
            digest_of(1),
            digest_of(2),
            digest_of(3)
        );
        let manifest: ImageManifest = parsed(text.as_bytes()).unwrap();
        let source = source_label(&"localhost:5000/a/b:1".parse().unwrap());
        let labels = labels_of_manifest(&manifest, source);
        let expected = [
            (
                "containerd.io/distribution.source.localhost:5000",
                "a/b".to_owned(),
            ),
            ("containerd.io/gc.ref.content.config", digest_of(1)),
            ("containerd.io/gc.ref.content.l.0", digest_of(2)),
            ("containerd.io/gc.ref.content.l.1", digest_of(3)),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value));
        assert_eq!(labels, Labels::from(expected));
    }

    #[test]
    fn the_manifest_of_the_platform_is_chosen() {
        let of = |platforms: &[&str]| -> Index {
            let all: Vec<String> = platforms
                .iter()
                .enumerate()
                .map(|(index, architecture)| {
                    let digest = digest_of(u8::try_from(index).unwrap());
                    format!(
                        r#"{{"digest": "{digest}", "size": 1, "platform": {{"os": "linux", "architecture": "{architecture}"}}}}"#
                    )
                })
                .collect();
            parsed(format!(r#"{{"manifests": [{}]}}"#, all.join(",")).as_bytes()).unwrap()
        };
        let platform: Platform = "linux/arm64".parse().unwrap();
        let index = of(&["amd64", "arm64"]);
        assert_eq!(chosen(&index, &platform).unwrap().digest, Digest([1; 32]));
        let error = chosen(&of(&["amd64"]), &platform).unwrap_err();
        assert_eq!(error, "it has no image for linux/arm64");
        let alone = format!(
            r#"{{"manifests": [{{"digest": "{}", "size": 1}}]}}"#,
            digest_of(7)
        );
        let alone: Index = parsed(alone.as_bytes()).unwrap();
        assert_eq!(chosen(&alone, &platform).unwrap().digest, Digest([7; 32]));
    }
}
