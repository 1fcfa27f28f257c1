//! Images of registries: what is asked for, what goes on after a connection broke, who is let in, and what is refused.

use std::{fs, path::Path};

use serde_json::json;
use snapshotter_remote::{
    Result,
    image::{Access, Origin, Platform, Registry as Client},
    store::{Added, Store},
};
use tempfile::{TempDir, tempdir};

use super::{
    added::layers,
    images::{Layout, digest, flat, gzip, layer, noise, packed, zstd},
    registry_server::{GOOD, Lets, Registry, Rules},
};

/// Adds what the registry has as `image:1`.
fn add(store: &Path, registry: &Registry, access: &Access) -> Result<Added> {
    let name = registry.image().parse().unwrap();
    let origin = Origin::of_registry(Client::of(name, access)?)?;
    let platform: Platform = "linux/amd64".parse().unwrap();
    let images = origin.images(&platform)?;
    assert_eq!(images.len(), 1);
    Store::create(store)?.add(&images[0])
}

/// No credentials, whoever runs the tests.
fn nobody(directory: &TempDir) -> Access {
    with_auth(directory, "{}")
}

fn with_auth(directory: &TempDir, text: &str) -> Access {
    let path = directory.path().join("auth.json");
    fs::write(&path, text).unwrap();
    Access {
        auth_file: Some(path),
        ..Access::default()
    }
}

/// The bytes of the last manifest of a layout.
pub(crate) fn manifest(layout: &Layout) -> Vec<u8> {
    let name = layout.manifests.last().unwrap()["digest"].as_str().unwrap();
    layout.blobs[name.trim_start_matches("sha256:")].clone()
}

#[test]
fn an_image_of_a_registry_becomes_the_disk_of_its_layers() {
    let directory = tempdir().unwrap();
    let (store, access) = (directory.path().join("store"), nobody(&directory));
    let layers = layers();
    let mut layout = Layout::default();
    layout.add(
        "other",
        "s390x",
        &packed(&[layer(&[("x", b"other")])], &[gzip]),
    );
    layout.add(
        "ours",
        "amd64",
        &packed(&layers, &[gzip, zstd, <[u8]>::to_vec]),
    );
    let platforms = ["s390x", "amd64"].iter().zip(&layout.manifests);
    let manifests = platforms.map(|(architecture, manifest)| {
        let mut manifest = manifest.clone();
        manifest["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifest
    });
    let mut manifests: Vec<_> = manifests.collect();
    // What a builder says of an image is no image, and is not asked for.
    let attested = digest(b"attested");
    manifests.push(json!({
        "digest": format!("sha256:{attested}"), "size": 8,
        "platform": { "os": "unknown", "architecture": "unknown" },
    }));
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    let registry = Registry::start(&layout, serde_json::to_vec(&index).unwrap(), &GOOD);
    let added = add(&store, &registry, &access).unwrap();
    let (chain_id, expected) = flat(&layers);
    assert_eq!((added.chain_id, added.disks_made), (chain_id, 3));
    let file = directory.path().join("disk");
    Store::open(&store)
        .unwrap()
        .export(chain_id, &file)
        .unwrap();
    assert!(fs::read(file).unwrap() == expected);
    // The index, one manifest, one config, and each layer once.
    let asked = registry.asked();
    assert_eq!(asked.len(), 6, "{asked:?}");
    assert_eq!(asked[0], "manifests/1");
    assert!(asked[1].starts_with("manifests/sha256:"), "{asked:?}");
    assert!(
        asked[2..].iter().all(|path| path.starts_with("blobs/")),
        "{asked:?}"
    );
    drop(registry);

    // Of another image with the same layers below, what is on top.
    let more = [&layers[..], &[layer(&[("top", b"top")])]].concat();
    let layout = Layout::of(&packed(&more, &[gzip]));
    let registry = Registry::start(&layout, manifest(&layout), &GOOD);
    let added = add(&store, &registry, &access).unwrap();
    assert_eq!((added.chain_id, added.disks_made), (flat(&more).0, 1));
    let asked = registry.asked();
    assert_eq!(asked.len(), 3, "manifest, config, one layer: {asked:?}");
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_was() {
    let check = |knows_ranges: bool, cuts: usize, ranges: &[&str]| {
        let directory = tempdir().unwrap();
        let layers = [layer(&[("x", &noise(1, 1_000_000))])];
        let layout = Layout::of(&packed(&layers, &[<[u8]>::to_vec]));
        let rules = Rules {
            knows_ranges,
            cuts,
            cut_bytes: 400_000,
            ..GOOD
        };
        let registry = Registry::start(&layout, manifest(&layout), &rules);
        let added = add(
            &directory.path().join("store"),
            &registry,
            &nobody(&directory),
        );
        assert_eq!(added.unwrap().chain_id, flat(&layers).0);
        let asked = registry.asked();
        let found = asked.iter().filter_map(|path| path.split(' ').nth(1));
        assert_eq!(found.collect::<Vec<_>>(), ranges, "{asked:?}");
    };
    check(true, 2, &["bytes=400000-", "bytes=800000-"]);
    // It gives all of it again, of which what is here is left out.
    check(false, 1, &["bytes=400000-"]);
}

#[test]
fn a_registry_lets_in_who_has_its_credentials() {
    let directory = tempdir().unwrap();
    let layers = [layer(&[("x", b"x")])];
    let layout = Layout::of(&packed(&layers, &[gzip]));
    for (index, lets) in [Lets::User, Lets::Bearer].into_iter().enumerate() {
        let rules = Rules { lets, ..GOOD };
        let registry = Registry::start(&layout, manifest(&layout), &rules);
        let store = directory.path().join(index.to_string());
        let auth = |auth: &str| {
            let text = json!({ "auths": { registry.address.to_string(): { "auth": auth } } });
            with_auth(&directory, &text.to_string())
        };
        // user:secret, user:other
        let added = add(&store, &registry, &auth("dXNlcjpzZWNyZXQ=")).unwrap();
        assert_eq!(added.chain_id, flat(&layers).0, "{lets:?}");
        let error = add(&store, &registry, &auth("dXNlcjpvdGhlcg=="))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("credentials are refused"),
            "{lets:?}: {error}"
        );
        let error = add(&store, &registry, &nobody(&directory))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--auth-file"), "{lets:?}: {error}");
        let helper = with_auth(&directory, r#"{ "credsStore": "pass" }"#);
        let error = add(&store, &registry, &helper).unwrap_err().to_string();
        assert!(
            error.contains("docker-credential-pass"),
            "{lets:?}: {error}"
        );
    }
}

#[test]
fn what_a_registry_does_not_have_or_lies_about_is_refused() {
    let directory = tempdir().unwrap();
    let (store, access) = (directory.path().join("store"), nobody(&directory));
    let blobs = packed(&[layer(&[("x", b"x")])], &[gzip]);
    let (whole, blob) = (Layout::of(&blobs), digest(&blobs[0].1).to_string());
    let refused = |layout: &Layout, tagged: Vec<u8>, expected: &str| {
        let registry = Registry::start(layout, tagged, &GOOD);
        let error = add(&store, &registry, &access).unwrap_err();
        let shown = snapshot_core::one_line(&error);
        assert!(shown.contains(expected), "{shown}");
    };
    let named = manifest(&whole);

    let mut without = Layout::of(&blobs);
    without.blobs.remove(&blob);
    refused(&without, named.clone(), "manifest unknown");

    let mut flipped = Layout::of(&blobs);
    flipped.blobs.get_mut(&blob).unwrap()[10] ^= 1;
    refused(&flipped, named.clone(), "is damaged");

    let mut text: serde_json::Value = serde_json::from_slice(&named).unwrap();
    let mut other = Layout::of(&blobs);
    let config = text["config"]["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    other.blobs.get_mut(&config).unwrap()[0] = b'[';
    refused(&other, named, "is damaged");

    let mut long = text.clone();
    long["layers"][0]["size"] = json!(1_u64 << 40);
    let bytes = serde_json::to_vec(&long).unwrap();
    refused(&whole, bytes, "a layer may have 128 GiB");

    text["layers"] = json!([]);
    let bytes = serde_json::to_vec(&text).unwrap();
    refused(&whole, bytes, "it needs as many of both");
    refused(&whole, b"{}".to_vec(), "config");
    refused(&whole, b"<html>".to_vec(), "manifest");

    let registry = Registry::start(&whole, manifest(&whole), &GOOD);
    let name = format!("{}/image:none", registry.address);
    let client = Client::of(name.parse().unwrap(), &access).unwrap();
    let error = Origin::of_registry(client).unwrap_err().to_string();
    assert!(
        error.contains("manifest unknown") && error.contains("image:none"),
        "{error}"
    );
    let address = registry.address;
    drop(registry);
    let client = Client::of(format!("{address}/image:1").parse().unwrap(), &access).unwrap();
    let error = Origin::of_registry(client).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[test]
fn no_more_of_a_long_blob_is_fetched_when_its_layer_is_refused() {
    let refused = |bytes: usize| {
        let directory = tempdir().unwrap();
        let blobs = packed(&[vec![b'x'; bytes]], &[<[u8]>::to_vec]);
        let mut layout = Layout::of(&blobs);
        let blob = layout.blobs.get_mut(&digest(&blobs[0].1).to_string());
        *blob.unwrap().last_mut().unwrap() ^= 1;
        let registry = Registry::start(&layout, manifest(&layout), &GOOD);
        let store = directory.path().join("store");
        let error = add(&store, &registry, &nobody(&directory)).unwrap_err();
        snapshot_core::one_line(&error)
    };
    // Only who has read all of it knows that it is another.
    let short = refused(100_000);
    assert!(short.contains("is damaged"), "{short}");
    let long = refused(16 << 20);
    assert!(!long.contains("is damaged"), "{long}");
}
