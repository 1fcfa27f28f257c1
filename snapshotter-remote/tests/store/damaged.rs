//! A store whose disk lied: found by `verify`, never exported, made again from the image.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use snapshotter_remote::{
    Error,
    store::{Below, Store, Sweep},
};
use tempfile::{TempDir, tempdir};

use super::{
    added::{add, layers},
    images::{Layout, flat, gzip, packed},
};

/// All files below a directory, sorted.
pub(crate) fn objects(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).unwrap();
            pending.extend(entries.map(|entry| entry.unwrap().path()));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// An image of three layers, the store's directory, and the store with it.
fn filled(directory: &TempDir) -> (PathBuf, PathBuf, Store) {
    let image = directory.path().join("image");
    Layout::of(&packed(&layers(), &[gzip])).directory(&image);
    let path = directory.path().join("store");
    let store = Store::create(&path).unwrap();
    add(&store, &image).unwrap();
    (image, path, store)
}

#[test]
fn every_object_that_changes_or_goes_is_found_and_made_again() {
    let directory = tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (image, _, store) = filled(&directory);
    let (chain_id, expected) = flat(&layers());
    let mut all = Vec::new();
    for kind in ["chunks", "tables", "layers", "disks"] {
        all.extend(objects(&path("store").join(kind)));
    }
    all.sort();
    // Three layers and tables, three disks, and chunks of them.
    assert!(all.len() > 15, "{}", all.len());
    for (index, object) in all.iter().enumerate() {
        let bytes = fs::read(object).unwrap();
        if index.is_multiple_of(3) {
            fs::remove_file(object).unwrap();
        } else {
            let mut changed = bytes.clone();
            // Not where zstd has a bit that means nothing.
            let at = bytes.len() * 2 / 3;
            changed[at] ^= 0x10;
            fs::write(object, changed).unwrap();
        }
        let verified = store.verify().unwrap();
        let found = verified.damages.len();
        let is_whole_without =
            object.starts_with(path("store/disks")) || object.starts_with(path("store/layers"));
        // Without its manifest there is no disk, and without a stored layer nobody misses it.
        let least = usize::from(!(index.is_multiple_of(3) && is_whole_without));
        assert!(found >= least, "{}", object.display());
        let exported = path("exported");
        match store.export(chain_id, &exported) {
            Ok(()) => {
                assert!(fs::read(&exported).unwrap() == expected);
                fs::remove_file(exported).unwrap();
            }
            Err(error) => {
                assert!(
                    matches!(error, Error::Damaged { .. } | Error::Absent { .. }),
                    "{error}"
                );
                assert!(!exported.exists());
            }
        }
        store.remove_damaged(&verified, Duration::ZERO).unwrap();
        add(&store, &image).unwrap();
        let verified = store.verify().unwrap();
        assert!(verified.damages.is_empty(), "{object:?}: {verified:?}");
        assert_eq!(verified.disks, 3);
    }
    store.export(chain_id, &path("last")).unwrap();
    assert!(fs::read(path("last")).unwrap() == expected);
}

#[test]
fn what_is_gone_or_whole_again_is_not_removed() {
    let directory = tempdir().unwrap();
    let (image, path, store) = filled(&directory);
    let chunks = objects(&path.join("chunks"));
    let whole: Vec<Vec<u8>> = chunks.iter().map(|file| fs::read(file).unwrap()).collect();
    for file in &chunks[..3] {
        fs::write(file, "damaged").unwrap();
    }
    let verified = store.verify().unwrap();
    assert_eq!(verified.damages.len(), 3, "{verified:?}");
    fs::remove_file(&chunks[0]).unwrap();
    fs::write(&chunks[1], &whole[1]).unwrap();
    assert_eq!(store.remove_damaged(&verified, Duration::ZERO).unwrap(), 1);
    assert!(chunks[1].exists() && !chunks[2].exists());
    add(&store, &image).unwrap();
    assert!(store.verify().unwrap().damages.is_empty());
}

#[test]
fn a_layer_under_the_name_of_another_is_damaged() {
    let directory = tempdir().unwrap();
    let (image, path, store) = filled(&directory);
    let stored = objects(&path.join("layers"));
    fs::copy(&stored[0], &stored[1]).unwrap();
    let verified = store.verify().unwrap();
    let [damage] = verified.damages.as_slice() else {
        panic!("{verified:?}");
    };
    assert!(
        damage.error.to_string().ends_with("it is another layer's"),
        "{damage:?}"
    );
    assert_eq!(store.remove_damaged(&verified, Duration::ZERO).unwrap(), 1);
    add(&store, &image).unwrap();
    assert!(store.verify().unwrap().damages.is_empty());
}

#[test]
fn disks_of_another_key_are_told_and_stay_and_no_key_is_made_for_them() {
    let directory = tempdir().unwrap();
    let (_, path, _) = filled(&directory);
    fs::rename(path.join("key"), directory.path().join("key")).unwrap();
    let error = Store::create(&path).unwrap_err();
    assert!(matches!(error, Error::KeyLost { .. }), "{error}");
    assert!(!path.join("key").exists());

    let other = directory.path().join("other");
    Store::create(&other).unwrap();
    fs::copy(other.join("key"), path.join("key")).unwrap();
    let store = Store::create(&path).unwrap();
    let verified = store.verify().unwrap();
    assert_eq!(verified.damages.len(), 3, "{verified:?}");
    assert_eq!(store.remove_damaged(&verified, Duration::ZERO).unwrap(), 0);
    // They hold everything up until they are given up, each by its name.
    let error = store.waste(Sweep::Remove, Duration::ZERO).unwrap_err();
    let chain_id = store.objects().disks().unwrap()[0];
    assert!(
        error
            .to_string()
            .contains(&format!("`store rm sha256:{chain_id}`")),
        "{error}"
    );
    let error = store.remove(chain_id, Below::Remove, Duration::ZERO);
    assert!(matches!(error, Err(Error::Unsure { .. })), "{error:?}");
    for disk in store.objects().disks().unwrap() {
        let gone = store.remove(disk, Below::Keep, Duration::ZERO).unwrap();
        assert_eq!(gone, [disk]);
    }
    assert!(
        !store
            .waste(Sweep::Remove, Duration::ZERO)
            .unwrap()
            .is_empty()
    );
}

/// A stored layer that is whole and right by itself, of another tar.
fn forge(path: &Path, of: &Path) {
    let other = fs::read(of).unwrap();
    let mut payload = zstd::stream::decode_all(&other[32..]).unwrap();
    let diff_id = path.file_name().unwrap().to_str().unwrap();
    for (byte, digits) in payload.iter_mut().zip(diff_id.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap();
    }
    let packed = zstd::stream::encode_all(&payload[..], 3).unwrap();
    let forged = [&blake3::hash(&payload).as_bytes()[..], &packed].concat();
    fs::write(path, forged).unwrap();
}

#[test]
fn a_stored_layer_is_the_one_that_was_signed() {
    let directory = tempdir().unwrap();
    let (image, path, store) = filled(&directory);
    let stored = objects(&path.join("layers"));
    forge(&stored[0], &stored[1]);
    let error = add(&store, &image).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("another than its manifest says"), "{text}");
    let verified = store.verify().unwrap();
    let [damage] = verified.damages.as_slice() else {
        panic!("{verified:?}");
    };
    let text = damage.error.to_string();
    assert!(
        text.ends_with("another than signed manifests say"),
        "{text}"
    );
    assert_eq!(store.remove_damaged(&verified, Duration::ZERO).unwrap(), 1);
    add(&store, &image).unwrap();
    assert!(store.verify().unwrap().damages.is_empty());
}
