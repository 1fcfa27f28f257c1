//! Images that are not what they say: a clear error, and nothing in the store that was not proved.

use std::{fs, path::Path};

use snapshotter_remote::store::Store;
use tempfile::tempdir;

use super::{
    added::add,
    images::{Layout, Pack, Packed, digest, gzip, layer, noise, packed, zstd},
};

/// Adds what `write` makes at the path it is given; the error must end so, and no disk be there.
fn check(expected: &str, write: impl FnOnce(&Path)) {
    let directory = tempdir().unwrap();
    let path = directory.path().join("image");
    write(&path);
    let store = Store::create(&directory.path().join("store")).unwrap();
    let error = add(&store, &path).unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    assert!(text.ends_with(expected), "{text}\n for {expected}");
    assert_eq!(store.list().unwrap(), []);
    let verified = store.verify().unwrap();
    assert!(verified.damages.is_empty(), "{verified:?}");
}

fn one(tar: &[u8], how: Pack) -> Vec<Packed> {
    packed(&[tar.to_vec()], &[how])
}

fn example() -> Vec<u8> {
    layer(&[("file", &noise(1, 300_000))])
}

#[test]
fn a_layer_that_is_not_its_diff_id_is_refused() {
    let other = digest(b"other");
    let found = digest(&example());
    for how in [gzip, zstd, <[u8]>::to_vec] {
        let blob = how(&example());
        let name = digest(&blob);
        check(
            &format!("layer sha256:{other} is sha256:{found} in blob sha256:{name}"),
            |path| Layout::of(&[(other, blob)]).directory(path),
        );
    }
}

#[test]
fn a_blob_that_is_not_its_digest_is_refused() {
    for how in [gzip, zstd, <[u8]>::to_vec] {
        let blob = how(&example());
        let name = digest(&blob).to_string();
        for at in [600, blob.len() / 2, blob.len() - 5] {
            let mut flipped = blob.clone();
            flipped[at] ^= 4;
            let found = digest(&flipped);
            check(
                &format!("blob sha256:{name} is damaged, its digest is sha256:{found}"),
                |path| {
                    let mut layout = Layout::of(&one(&example(), how));
                    layout.blobs.insert(name.clone(), flipped);
                    layout.directory(path);
                },
            );
        }
        check(
            &format!("has {} bytes, not {}", blob.len() - 1, blob.len()),
            |path| {
                let mut layout = Layout::of(&one(&example(), how));
                layout.blobs.get_mut(&name).unwrap().pop();
                layout.archive(path);
            },
        );
        check(&format!("blob sha256:{name} is not in it"), |path| {
            let mut layout = Layout::of(&one(&example(), how));
            layout.blobs.remove(&name);
            layout.archive(path);
        });
    }
}

#[test]
fn a_stream_that_is_no_stream_is_refused() {
    let tar = example();
    let cut = gzip(&tar)[..1000].to_vec();
    check("incomplete deflate stream", |path| {
        Layout::of(&[(digest(&tar), cut)]).directory(path);
    });
    let name = digest(b"no tar at all");
    check(
        "tar header at byte 13: the tar ends within a block",
        |path| {
            Layout::of(&[(name, b"no tar at all".to_vec())]).directory(path);
        },
    );
    // Beyond the end of its tar, which is read to its end for the digest.
    let mut long = gzip(&tar);
    long.extend_from_slice(b"rubbish behind the stream");
    check("invalid gzip header", |path| {
        Layout::of(&[(digest(&tar), long)]).directory(path);
    });
}

#[test]
fn what_is_no_layout_is_told_how_to_become_one() {
    check("`docker save` since Docker 25 write one", |path| {
        fs::create_dir(path).unwrap();
    });
    check("`docker save` since Docker 25 write one", |path| {
        fs::write(path, layer(&[("manifest.json", b"[]")])).unwrap();
    });
    check("it is shorter than a tar", |path| {
        fs::write(path, "{}").unwrap();
    });
    check("a header whose checksum is wrong", |path| {
        let packed = gzip(&layer(&[("index.json", &noise(1, 2000))]));
        fs::write(path, packed).unwrap();
    });
    check("No such file or directory (os error 2)", |_path| {});
    check(
        "index.json: missing field `manifests` at line 1 column 2",
        |path| {
            fs::write(path, layer(&[("index.json", b"{}")])).unwrap();
        },
    );
    check("index.json is longer than 4 MiB", |path| {
        let spaces = vec![b' '; (4 << 20) + 1];
        fs::write(path, layer(&[("index.json", &spaces)])).unwrap();
    });
}

#[test]
fn documents_that_lie_are_refused() {
    check("it has no layers, so there is nothing to mount", |path| {
        Layout::of(&[]).directory(path);
    });
    let layers =
        "image test has 0 layers and 1 diffIDs: it needs as many of both, and not more than 4096";
    check(layers, |path| {
        let mut layout = Layout::of(&one(&example(), gzip));
        let digest = layout.manifests[0]["digest"].as_str().unwrap().to_owned();
        let manifest = &layout.blobs[digest.trim_start_matches("sha256:")];
        let mut manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        manifest["layers"] = serde_json::json!([]);
        let mut descriptor = layout.document(&manifest);
        descriptor["annotations"] = layout.manifests[0]["annotations"].clone();
        layout.manifests = vec![descriptor];
        layout.directory(path);
    });
    check(
        "a digest that is not sha256: and 64 digits at line 1 column 40",
        |path| {
            let index = br#"{"manifests":[{"digest":"sha256:../../x","size":1}]}"#;
            fs::write(path, layer(&[("index.json", index)])).unwrap();
        },
    );
    let name = "the name a\\nb of an image in it has control characters, or more than 1024 bytes";
    check(name, |path| {
        let mut layout = Layout::of(&one(&example(), gzip));
        layout.manifests[0]["annotations"]["org.opencontainers.image.ref.name"] = "a\nb".into();
        layout.directory(path);
    });
    let many = "it has more indexes or manifests than an image has";
    check(many, |path| {
        let mut layout = Layout::of(&one(&example(), gzip));
        layout.manifests = vec![layout.manifests[0].clone(); 1001];
        layout.directory(path);
    });
    // An index that has itself.
    check(
        "it has more indexes or manifests than an image has",
        |path| {
            let mut layout = Layout::default();
            let index = "application/vnd.oci.image.index.v1+json";
            let mut inner = layout.document(&serde_json::json!({ "manifests": [] }));
            for _ in 0..6 {
                inner["mediaType"] = index.into();
                inner = layout.document(&serde_json::json!({ "manifests": [inner] }));
            }
            inner["mediaType"] = index.into();
            layout.manifests = vec![inner];
            layout.directory(path);
        },
    );
}

#[test]
fn a_layer_that_cannot_be_part_of_a_disk_is_named() {
    let tar = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, "x", "nowhere").unwrap();
        builder.into_inner().unwrap()
    };
    let name = digest(&tar);
    check(
        &format!("layer sha256:{name}: /nowhere: the target of a hard link is not there"),
        |path| Layout::of(&one(&tar, gzip)).directory(path),
    );
}
