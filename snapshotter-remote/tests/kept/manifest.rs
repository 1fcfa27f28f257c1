//! Manifests: written in one way, read strictly.

use disk::Digest;
use proptest::prelude::*;
use snapshotter_remote::{
    Error,
    chunk::ChunkId,
    manifest::{Device, Layer, Manifest, chain_ids},
    table::{Piece, Table},
};

pub(crate) fn digest(value: u8) -> Digest {
    Digest([value; 32])
}

fn table(pieces: &[Piece]) -> Table {
    Table::new(pieces.to_vec()).unwrap()
}

fn chunk(value: u8, blocks: u32) -> Piece {
    let id = ChunkId([value; 32]);
    Piece::Chunk { id, blocks }
}

fn device(value: u8, blocks: u32) -> Device {
    Device {
        diff_id: digest(value),
        blocks,
        table: [value + 100; 32],
    }
}

fn layer(value: u8) -> Layer {
    Layer {
        diff_id: digest(value),
        stored: [value + 200; 32],
    }
}

pub(crate) fn example() -> Manifest {
    Manifest {
        layers: vec![layer(1), layer(2), layer(3)],
        devices_metadata: table(&[chunk(10, 256), chunk(11, 7)]),
        flat_metadata: table(&[chunk(12, 256), Piece::Hole { blocks: 16 }, chunk(11, 7)]),
        devices: vec![device(1, 100), device(3, 70_000)],
    }
}

fn decode(bytes: &[u8]) -> Result<Manifest, Error> {
    Manifest::decode("manifest x", bytes)
}

#[test]
fn a_manifest_has_the_bytes_it_always_had() {
    let bytes = example().encode().unwrap();
    assert_eq!(decode(&bytes).unwrap(), example());
    let name = blake3::hash(&bytes).to_string();
    assert_eq!((bytes.len(), &name[..16]), (508, "5c1309adb90c57cb"));
}

#[test]
fn chain_ids_are_those_of_the_image_spec() {
    let ids = chain_ids(&[digest(1), digest(2)]);
    assert_eq!(ids[0], digest(1));
    // printf 'sha256:%s sha256:%s' 0101.. 0202.. | sha256sum
    let second = "ad00036de6f26a309d173ace61d4a45573a1658ab0ff36e3858c3dbee3c5ded8";
    assert_eq!(ids[1].to_string(), second);
    assert_eq!(chain_ids(&[]), []);
}

#[test]
fn the_flat_disk_is_metadata_and_blobs() {
    assert_eq!(example().flat_blocks(), 279 + 70_100);
}

#[test]
fn a_manifest_that_is_cut_or_goes_on_is_refused() {
    let bytes = example().encode().unwrap();
    for length in 0..bytes.len() {
        let error = decode(&bytes[..length]).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{length}: {error}");
    }
    decode(&[&bytes[..], &[0]].concat()).unwrap_err();
}

#[test]
fn what_no_writer_writes_is_refused() {
    let check = |change: &dyn Fn(&mut Manifest), expected: &str| {
        let mut manifest = example();
        change(&mut manifest);
        let error = decode(&manifest.encode().unwrap()).unwrap_err().to_string();
        assert_eq!(error, format!("manifest x is damaged: {expected}"));
    };
    let device_twice = "a device that is no layer, or one twice";
    check(&|it| it.layers.clear(), "it has no layer, or too many");
    check(&|it| it.devices[0].diff_id = digest(9), device_twice);
    check(&|it| it.devices[1].diff_id = digest(1), device_twice);
    check(&|it| it.devices[0].blocks = 0, "a device without contents");
    check(
        &|it| it.devices[0].blocks = u32::MAX - 70_000,
        "it has more blocks than a disk",
    );
    check(
        &|it| it.flat_metadata = Table::default(),
        "a disk without metadata",
    );
    let error = Manifest {
        layers: vec![layer(1); 4097],
        ..example()
    };
    assert_eq!(
        error.encode().unwrap_err().to_string(),
        "more than 4096 layers of an image"
    );
}

#[test]
fn tables_that_nobody_cuts_are_refused() {
    let hole = |blocks| Piece::Hole { blocks };
    for pieces in [
        vec![chunk(1, 0)],
        vec![chunk(1, 257)],
        vec![hole(0)],
        vec![hole(1 << 31)],
        vec![hole(16), hole(16)],
    ] {
        Table::new(pieces).unwrap_err();
    }
    let half = hole((1 << 31) - 1);
    let most = [half, chunk(1, 1), half];
    assert_eq!(table(&most).blocks(), u32::MAX);
    let beyond = [&most[..], &[chunk(1, 1)]].concat();
    assert_eq!(
        Table::new(beyond).unwrap_err(),
        "it has more blocks than a disk"
    );
}

#[test]
fn lists_that_are_longer_than_what_follows_are_refused_before_they_are_made() {
    let mut bytes = example().encode().unwrap();
    bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = decode(&bytes).unwrap_err().to_string();
    assert_eq!(error, "manifest x is damaged: it says more than it has");
}

#[test]
fn another_version_is_told_from_damage() {
    for (at, found, known) in [(8, 1, 2), (8, 3, 2), (12, 2, 1)] {
        let mut bytes = example().encode().unwrap();
        bytes[at] = found;
        let error = decode(&bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("manifest x is of version {found}, and this program reads version {known}")
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]

    #[test]
    fn what_is_read_is_what_would_be_written(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = example().encode().unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(manifest) = decode(&bytes) {
            prop_assert_eq!(manifest.encode().unwrap(), bytes);
        }
    }
}
