//! Layers that were stored: what comes back merges as the layer that was read, and bytes that nobody
//! stored are refused. That all other tests merge layers that were stored, `tarball::read` sees to.

use std::io::Cursor;

use disk::{Error, Form, Image, Layer, Limits, Tree};
use proptest::prelude::*;

use super::{
    arbitrary::everything,
    tarball::{Entry, digest, directory, file, link, tar},
    written::{dump, golden},
};

const LIMITS: Limits = Limits {
    entries_max: 64,
    metadata_bytes_max: 1 << 20,
    header_bytes_max: 1 << 16,
    blob_bytes_max: 1 << 20,
};

fn layer(entries: &[Entry]) -> Layer {
    let mut blob = Cursor::new(Vec::new());
    Layer::read(&tar(entries)[..], &mut blob, &LIMITS).unwrap()
}

/// What only other layers give a meaning.
fn upper() -> Layer {
    layer(&[
        file("hard", "new"),
        link(b'1', "again", "hard"),
        link(b'1', "below", "set-id"),
        link(b'1', "below-too", "below"),
        file("d/.wh.file", ""),
        file("only/whiteouts/.wh.x", ""),
        file("made/by/this", ""),
    ])
}

fn image(layers: &[Layer], form: Form) -> Vec<u8> {
    let mut tree = Tree::new();
    for (index, layer) in layers.iter().enumerate() {
        tree.apply(layer, digest(index)).unwrap();
    }
    let mut out = Vec::new();
    let image = Image::of(&tree, digest(9), form).unwrap();
    image.write(&mut out).unwrap();
    out
}

#[test]
fn a_stored_layer_merges_as_the_one_that_was_read() {
    let layers = [layer(&everything()), upper()];
    let stored = layers
        .each_ref()
        .map(|layer| Layer::decode(&layer.encode(), &LIMITS).unwrap());
    for form in [Form::Devices, Form::Flat] {
        assert_eq!(image(&layers, form), image(&stored, form));
    }
}

#[test]
fn a_stored_layer_has_the_bytes_it_always_had() {
    golden("stored.txt", &dump(&layer(&everything()).encode()));
    golden("stored-upper.txt", &dump(&upper().encode()));
}

#[test]
fn a_layer_that_is_cut_or_goes_on_is_refused() {
    let bytes = layer(&everything()).encode();
    for length in 0..bytes.len() {
        let error = Layer::decode(&bytes[..length], &LIMITS).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{length}: {error}");
    }
    let error = Layer::decode(&[&bytes[..], &[0]].concat(), &LIMITS).unwrap_err();
    let shown = format!(
        "stored layer at byte {}: more bytes than records",
        bytes.len()
    );
    assert_eq!(error.to_string(), shown);
}

#[test]
fn a_layer_of_another_version_is_told_from_a_damaged_one() {
    let mut bytes = upper().encode();
    bytes[8] += 1;
    let error = Layer::decode(&bytes, &LIMITS).unwrap_err();
    assert!(
        matches!(error, Error::OtherVersion { found: 65538 }),
        "{error}"
    );
}

/// A stored layer of these records and one block of contents.
fn records(records: &[&[u8]]) -> Vec<u8> {
    let mut bytes = upper().encode()[..12].to_vec();
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&records.concat());
    bytes
}

/// A new path that keeps nothing, what is there, and no attributes to speak of.
fn record(path: &str, tag: u8, mode: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(path.len()).unwrap()];
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(tag);
    bytes.extend_from_slice(&mode);
    // Owner, group, time, no extended attributes.
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(rest);
    bytes
}

#[test]
fn what_no_tar_becomes_is_refused() {
    // 0644 and 0777.
    let (plain, all) = ([0xa4, 3], [0xff, 3]);
    let good = record("f", 1, plain, &[0x80, 0x20, 0]);
    Layer::decode(&records(&[&good]), &LIMITS).unwrap();
    let check = |bytes: &[&[u8]], expected: &str| {
        let error = Layer::decode(&records(bytes), &LIMITS).unwrap_err();
        let error = error.to_string();
        assert!(error.ends_with(expected), "{error:?} for {expected:?}");
    };
    let one = |path, tag, mode, rest: &[u8], expected| {
        check(&[&record(path, tag, mode, rest)], expected);
    };
    one("../f", 1, plain, &[0, 0], "a path with ..");
    one("./f", 1, plain, &[0, 0], "parts that mean nothing");
    one("", 1, plain, &[0, 0], "image that is no directory");
    one("a/.wh.f", 1, plain, &[0, 0], "removal of a whiteout");
    one(
        "f",
        1,
        plain,
        &[0x81, 0x20, 0],
        "beyond the end of the blob",
    );
    one("f", 1, plain, &[1, 1], "beyond the end of the blob");
    one("f", 1, plain, &[0x80, 0, 0], "nobody writes so");
    one("f", 1, [0x80, 0x20], &[0, 0], "more than permissions");
    one("f", 2, plain, &[1, 0, 1, 0, 1], "without a hole");
    one("f", 2, plain, &[1, 0, 1, 1, 1], "that no sparse file has");
    one("l", 3, plain, &[1, b'x'], "of no kind that there is");
    one("l", 3, all, &[0], "a symbolic link to nothing");
    one("c", 4, plain, &[0, 0], "a character device 0:0");
    one("c", 5, plain, &[0x80, 0x20, 0], "that Linux does not have");
    one("x", 11, plain, &[], "of no kind that there is");
    check(&[&good, &good], "a path that the layer has twice");
    check(&[&good, &[1, 2, b'/', b'x', 10]], "has a file");
    check(&[&[0, 1, b'x', 7, 0]], "another name of no earlier file");
    check(&[&[1, 0, 10]], "a path that keeps more than there was");
    check(&[&[0, 0, 9]], "a whiteout of the root");
    check(
        &[&good, &[0, 1, b'x', 8, 1, b'f']],
        "a hard link that comes before it",
    );
}

#[test]
fn limits_hold_for_what_is_read_back() {
    let read = |bytes: &[u8], limits| Layer::decode(bytes, &limits).unwrap_err().to_string();
    let bytes = upper().encode();
    let entries = Limits {
        entries_max: 3,
        ..LIMITS
    };
    assert_eq!(read(&bytes, entries), "more than 3 entries in a layer");
    let blob = Limits {
        blob_bytes_max: 4095,
        ..LIMITS
    };
    assert_eq!(
        read(&bytes, blob),
        "more than 4095 bytes of contents in a layer"
    );
    // One path, which makes 49 directories.
    let deep = layer(&[directory(&"a/".repeat(49))]).encode();
    let metadata = Limits {
        metadata_bytes_max: 9000,
        ..LIMITS
    };
    assert_eq!(
        read(&deep, metadata),
        "more than 9000 bytes of names and attributes in a layer"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn changed_bytes_are_a_layer_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let lower = layer(&everything());
        let mut bytes = upper().encode();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let Ok(changed) = Layer::decode(&bytes, &LIMITS) else {
            return Ok(());
        };
        let again = Layer::decode(&changed.encode(), &LIMITS).unwrap();
        prop_assert_eq!(again.encode(), changed.encode());
        let mut tree = Tree::new();
        tree.apply(&lower, digest(0)).unwrap();
        // A hard link may lead nowhere now, which only merging shows.
        if tree.apply(&changed, digest(1)).is_ok() {
            let mut out = Vec::new();
            Image::of(&tree, digest(9), Form::Devices).unwrap().write(&mut out).unwrap();
        }
    }
}
