//! What no disk needs goes, and nothing else, whoever adds or serves meanwhile and whenever it is killed.

#![expect(
    clippy::disallowed_methods,
    reason = "the command is a process of its own, and the crate spawns nothing"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use disk::Digest;
use snapshotter_remote::{
    Error,
    store::{Below, Name, Store, Sweep, Waste},
};
use tempfile::{TempDir, tempdir};

use super::{
    added::add,
    damaged::objects,
    images::{Layout, flat, gzip, layer, noise, packed},
    served::{LONG_BYTES, begin, put_something_long},
    server::Server,
};

const AT_ONCE: Duration = Duration::ZERO;

fn add_image(directory: &TempDir, layers: &[Vec<u8>]) -> Digest {
    let image = tempfile::tempdir_in(directory.path()).unwrap();
    Layout::of(&packed(layers, &[gzip])).directory(image.path());
    let store = Store::create(&directory.path().join("store")).unwrap();
    add(&store, image.path()).unwrap()[0].chain_id
}

/// Two images on one layer, with two layers of their own each.
fn two_images(directory: &TempDir) -> [Vec<Vec<u8>>; 2] {
    let base = layer(&[("base", &noise(1, 400_000))]);
    let images = [2, 4].map(|seed| {
        let own = [seed, seed + 1].map(|seed| {
            let name = format!("of-{seed}");
            layer(&[
                (name.as_str(), &noise(seed, 400_000)),
                ("shared", b"shared"),
            ])
        });
        [std::slice::from_ref(&base), &own].concat()
    });
    for image in &images {
        add_image(directory, image);
    }
    images
}

fn bytes_of(waste: &[(Waste, u64)]) -> u64 {
    waste.iter().map(|(_, bytes)| bytes).sum()
}

/// What is in the store comes out as it should, and nothing of it is missing.
fn check(store: &Store, directory: &Path, images: &[&[Vec<u8>]]) {
    let verified = store.verify().unwrap();
    assert!(verified.damages.is_empty(), "{verified:?}");
    for (index, image) in images.iter().enumerate() {
        let (chain_id, expected) = flat(image);
        let file = directory.join(format!("disk-{index}"));
        store.export(chain_id, &file).unwrap();
        assert!(fs::read(&file).unwrap() == expected);
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn what_only_a_removed_disk_needed_goes_and_nothing_else() {
    let directory = tempdir().unwrap();
    let [first, second] = two_images(&directory);
    let path = directory.path().join("store");
    let store = Store::open(&path).unwrap();
    assert_eq!(store.waste(Sweep::Remove, AT_ONCE).unwrap(), []);

    let stray = PathBuf::from(format!("traces/1/{}.hosts", "a".repeat(64)));
    fs::write(path.join(&stray), "123").unwrap();
    let swept = store.waste(Sweep::Remove, AT_ONCE).unwrap();
    assert_eq!(swept, [(Waste::Leftover(stray.clone()), 3)]);
    assert!(!path.join(stray).exists());

    let (base, top) = (flat(&first[..1]).0, flat(&first).0);
    let error = store.remove(base, Below::Keep, AT_ONCE).unwrap_err();
    assert!(matches!(error, Error::StoodOn { .. }), "{error}");
    let gone = store.remove(top, Below::Remove, AT_ONCE).unwrap();
    assert_eq!(
        gone,
        [top, flat(&first[..2]).0],
        "the other image needs the lowest"
    );
    let error = store.remove(top, Below::Keep, AT_ONCE).unwrap_err();
    assert!(matches!(error, Error::Absent { .. }), "{error}");

    let before: u64 = objects(&path)
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    let counted = store.waste(Sweep::Count, AT_ONCE).unwrap();
    assert_eq!(
        store.waste(Sweep::Count, AT_ONCE).unwrap(),
        counted,
        "it only counts"
    );
    let swept = store.waste(Sweep::Remove, AT_ONCE).unwrap();
    assert_eq!(swept, counted);
    let after: u64 = objects(&path)
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert_eq!(before - after, bytes_of(&swept));
    assert!(bytes_of(&swept) > 800_000, "{swept:?}");
    assert_eq!(store.waste(Sweep::Remove, AT_ONCE).unwrap(), []);
    check(&store, directory.path(), &[&second, &second[..1]]);
    // What went can come again, and what stayed is used for it.
    add_image(&directory, &first);
    check(&store, directory.path(), &[&first, &second]);
}

#[test]
fn what_a_killed_add_left_half_goes_and_other_files_stay() {
    let directory = tempdir().unwrap();
    let image = [layer(&[("x", &noise(1, 100_000))])];
    add_image(&directory, &image);
    let path = directory.path().join("store");
    let digits = "a".repeat(64);
    let half = [
        format!("chunks/aa/{digits}#1"),
        format!("tables/{digits}#12"),
        format!("disks/1/{digits}#3"),
    ];
    let foreign = [
        "chunks/note".to_owned(),
        format!("tables/{digits}#x"),
        "#1".to_owned(),
    ];
    fs::create_dir_all(path.join("chunks/aa")).unwrap();
    for name in half.iter().chain(&foreign) {
        fs::write(path.join(name), "12345").unwrap();
    }
    let store = Store::open(&path).unwrap();
    let swept = store.waste(Sweep::Remove, AT_ONCE).unwrap();
    let expected = half
        .clone()
        .map(|name| (Waste::Leftover(PathBuf::from(name)), 5));
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(swept, expected);
    assert!(half.iter().all(|name| !path.join(name).exists()));
    assert!(foreign.iter().all(|name| path.join(name).exists()));
    check(&store, directory.path(), &[&image]);
}

#[test]
fn nothing_goes_while_it_is_not_known_what_is_needed() {
    let directory = tempdir().unwrap();
    let images = two_images(&directory);
    let path = directory.path().join("store");
    let store = Store::open(&path).unwrap();
    store
        .remove(flat(&images[0]).0, Below::Remove, AT_ONCE)
        .unwrap();
    let all = objects(&path);
    let refuses = || {
        let error = store.waste(Sweep::Remove, AT_ONCE).unwrap_err();
        assert_eq!(objects(&path).len(), all.len(), "{error}");
        error
    };
    let (chain_id, _) = flat(&images[1]);
    let manifest = path.join(Name::Disk(chain_id).to_string());
    let bytes = fs::read(&manifest).unwrap();
    fs::write(&manifest, &bytes[1..]).unwrap();
    assert!(matches!(refuses(), Error::Unsure { .. }));
    fs::write(&manifest, &bytes).unwrap();

    let newer = path.join("disks/2");
    fs::create_dir(&newer).unwrap();
    assert!(
        !store.waste(Sweep::Count, AT_ONCE).unwrap().is_empty(),
        "an empty directory says nothing"
    );
    let moved = newer.join(manifest.file_name().unwrap());
    fs::rename(&manifest, &moved).unwrap();
    assert!(matches!(refuses(), Error::OtherFormat { .. }));
    fs::rename(&moved, &manifest).unwrap();
    assert!(!store.waste(Sweep::Remove, AT_ONCE).unwrap().is_empty());
}

fn command(words: &[&str], store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapshotter-remote"));
    command.arg("store").args(words).arg("--dir").arg(store);
    command.stdin(Stdio::null());
    command
}

#[test]
fn it_waits_for_those_who_add_and_is_told_when_it_may_not() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::create(&path).unwrap();
    // Waste of an add that is running: chunks of which no manifest says anything yet.
    let layers: Vec<Vec<u8>> = (1..=3)
        .map(|seed| layer(&[("x", &noise(seed, 4 << 20))]))
        .collect();
    let image = directory.path().join("image");
    Layout::of(&packed(&layers, &[<[u8]>::to_vec])).directory(&image);
    let words = ["add", image.to_str().unwrap(), "--platform", "linux/amd64"];
    let mut adding = command(&words, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut busy = 0;
    while adding.try_wait().unwrap().is_none() {
        match store.waste(Sweep::Remove, AT_ONCE) {
            Err(Error::Busy { .. }) => busy += 1,
            // Before the add has begun, or at its end.
            other => drop(other.unwrap()),
        }
    }
    assert!(adding.wait().unwrap().success());
    assert!(busy > 0, "they never met");
    check(&store, directory.path(), &[&layers]);
    // And one that waits comes after it.
    let base = add_image(&directory, &[layer(&[("x", &noise(9, 100_000))])]);
    store.remove(base, Below::Keep, AT_ONCE).unwrap();
    let mut adding = command(&words, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let output = command(&["gc", "--wait", "100"], &path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("1 layers of ") && said.ends_with(" removed\n"),
        "{said}"
    );
    assert!(adding.wait().unwrap().success());
    check(&store, directory.path(), &[&layers]);
}

#[test]
fn one_that_is_killed_leaves_every_disk_and_the_next_goes_on() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("store");
    let kept = [layer(&[("kept", &noise(1, 300_000))])];
    add_image(&directory, &kept);
    let store = Store::open(&path).unwrap();
    let many: Vec<(String, Vec<u8>)> = (0..120)
        .map(|number| (format!("f{number}"), noise(number, 70_000)))
        .collect();
    let many: Vec<(&str, &[u8])> = many
        .iter()
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    let waste = add_image(&directory, &[layer(&many)]);
    store.remove(waste, Below::Keep, AT_ONCE).unwrap();
    let mut kills = 0;
    loop {
        let before = objects(&path).len();
        let mut sweeping = command(&["gc"], &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ended = loop {
            if let Some(status) = sweeping.try_wait().unwrap() {
                break Some(status);
            }
            // Until it has removed something, or is done.
            if objects(&path).len() < before {
                sweeping.kill().unwrap();
                sweeping.wait().unwrap();
                break None;
            }
            std::thread::yield_now();
        };
        check(&store, directory.path(), &[&kept]);
        match ended {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => kills += 1,
        }
    }
    assert!(kills > 0, "it was never caught at work");
    assert_eq!(store.waste(Sweep::Count, AT_ONCE).unwrap(), []);
}

#[test]
fn what_is_served_goes_on_until_it_was_sent() {
    let directory = tempdir().unwrap();
    let [first, second] = two_images(&directory);
    let path = directory.path().join("store");
    let store = Store::open(&path).unwrap();
    let server = Server::start(&path, "");
    let (chain_id, _) = flat(&first);
    let name = Name::Disk(chain_id).to_string();
    assert_eq!(server.get(&name, &[]).status, 200);
    let long = put_something_long(&path);
    let mut begun = begin(&server, &long);
    store.remove(chain_id, Below::Keep, AT_ONCE).unwrap();
    let swept = store.waste(Sweep::Remove, AT_ONCE).unwrap();
    let is_long =
        |(waste, _): &(Waste, u64)| matches!(waste, Waste::Object(one) if one.to_string() == long);
    assert!(swept.iter().any(is_long), "{swept:?}");
    assert_eq!(server.get(&long, &[]).status, 404);
    let rest = std::io::copy(&mut begun, &mut std::io::sink()).unwrap();
    assert!((LONG_BYTES - 1000..LONG_BYTES).contains(&rest), "{rest}");
    assert_eq!(server.get(&name, &[]).status, 404);
    let name = Name::Disk(flat(&second).0).to_string();
    assert_eq!(server.get(&name, &[]).status, 200);
}
