//! What was added comes out, byte by byte as the crate `disk` writes it.

use std::{fs, path::Path};

use snapshotter_remote::{
    image::{Origin, Platform},
    store::{Added, Store},
};
use tempfile::tempdir;

use super::images::{Layout, Pack, flat, gzip, layer, noise, packed, zstd};

pub(crate) fn add(store: &Store, layout: &Path) -> snapshotter_remote::Result<Vec<Added>> {
    let opened = Origin::open(layout)?;
    let platform: Platform = "linux/amd64".parse().unwrap();
    let images = opened.images(&platform)?;
    images.iter().map(|image| store.add(image)).collect()
}

/// Three layers: a long file, one that goes, a hole.
pub(crate) fn layers() -> Vec<Vec<u8>> {
    let sparse = [noise(3, 5000), vec![0; 3 << 20], noise(4, 100)].concat();
    vec![
        layer(&[("d/long", &noise(1, 3 << 20)), ("gone", b"gone")]),
        layer(&[(".wh.gone", b""), ("d/text", &b"text ".repeat(100_000))]),
        layer(&[("sparse", &sparse), ("empty", b"")]),
    ]
}

#[test]
fn a_disk_that_is_exported_is_the_one_that_disk_writes() {
    let directory = tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let layers = layers();
    let layout = Layout::of(&packed(&layers, &[gzip, zstd, <[u8]>::to_vec]));
    layout.archive(&path("image.tar"));
    layout.directory(&path("image"));
    let store = Store::create(&path("store")).unwrap();
    let added = add(&store, &path("image.tar")).unwrap();
    let (chain_id, expected) = flat(&layers);
    assert_eq!(
        added,
        [Added {
            chain_id,
            layers: 3,
            disks_made: 3,
            disk_bytes: expected.len() as u64,
        }]
    );
    // Each prefix is a disk, because containerd asks for it.
    for count in 1..=3 {
        let (chain_id, expected) = flat(&layers[..count]);
        let file = path(&format!("disk-{count}"));
        store.export(chain_id, &file).unwrap();
        assert!(fs::read(file).unwrap() == expected, "{count} layers");
    }
    // The directory has the same image, and another process the same store.
    let again = add(&Store::open(&path("store")).unwrap(), &path("image")).unwrap();
    assert_eq!((again[0].chain_id, again[0].disks_made), (chain_id, 0));
    let verified = store.verify().unwrap();
    assert!(verified.damages.is_empty(), "{verified:?}");
    assert_eq!((verified.disks, verified.chunks_unused), (3, 0));
}

#[test]
fn how_a_layer_was_packed_makes_no_difference_and_it_is_converted_once() {
    let directory = tempdir().unwrap();
    let layers = layers();
    let store = Store::create(&directory.path().join("store")).unwrap();
    let mut made = Vec::new();
    for (name, how) in [
        ("plain", <[u8]>::to_vec as Pack),
        ("gzip", gzip),
        ("zstd", zstd),
    ] {
        let path = directory.path().join(name);
        Layout::of(&packed(&layers, &[how])).directory(&path);
        made.push(add(&store, &path).unwrap()[0].disks_made);
    }
    assert_eq!(made, [3, 0, 0]);
    // Another image on the same first layer: its blobs are not even looked for.
    let other = [layers[0].clone(), layer(&[("other", b"other")])];
    let mut layout = Layout::of(&packed(&other, &[gzip]));
    let first = super::images::digest(&gzip(&layers[0])).to_string();
    layout.blobs.remove(&first).unwrap();
    let path = directory.path().join("other");
    layout.directory(&path);
    assert_eq!(add(&store, &path).unwrap()[0].disks_made, 1);
    assert_eq!(store.list().unwrap().len(), 4);
}

#[test]
fn only_images_for_the_platform_are_added() {
    let directory = tempdir().unwrap();
    let (ours, other) = (layer(&[("x", b"amd64")]), layer(&[("x", b"arm64")]));
    let mut layout = Layout::default();
    layout.add("arm", "arm64", &packed(&[other], &[gzip]));
    layout.add(
        "amd",
        "amd64",
        &packed(std::slice::from_ref(&ours), &[gzip]),
    );
    // As build tools write it: an index in an index.
    let inner = serde_json::json!({ "manifests": layout.manifests });
    let mut outer = layout.document(&inner);
    outer["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    layout.manifests = vec![outer];
    let path = directory.path().join("image.tar");
    layout.archive(&path);
    let store = Store::create(&directory.path().join("store")).unwrap();
    let added = add(&store, &path).unwrap();
    let chain_ids: Vec<_> = added.iter().map(|added| added.chain_id).collect();
    assert_eq!(chain_ids, [flat(&[ours]).0]);
    let opened = Origin::open(&path).unwrap();
    let mips = opened.images(&"linux/mips".parse().unwrap()).unwrap_err();
    let mips = mips.to_string();
    assert!(
        mips.ends_with("it has no image for linux/mips; it has: linux/amd64, linux/arm64"),
        "{mips}"
    );
}
