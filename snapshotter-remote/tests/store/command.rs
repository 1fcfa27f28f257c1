//! The command: its words, its errors, and what is left when it is killed.

#![expect(
    clippy::disallowed_methods,
    reason = "the command is a process of its own, and the crate spawns nothing"
)]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use snapshotter_remote::store::Store;
use tempfile::tempdir;

use super::images::{Layout, flat, gzip, layer, noise, packed};

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapshotter-remote"));
    command.arg("store").args(words).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn an_image_is_added_listed_verified_and_exported() {
    let directory = tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let layers = [layer(&[("x", &noise(1, 100_000))])];
    Layout::of(&packed(&layers, &[gzip])).archive(&directory.path().join("image.tar"));
    let (chain_id, expected) = flat(&layers);
    let (image, store) = (format!("oci-archive:{}", path("image.tar")), path("store"));
    let words = |rest: &[&str]| {
        let words = [rest, &["--dir", &store]].concat();
        let (code, out, err) = run(&words);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}");
        out
    };
    let platform = ["add", &image, "--platform", "linux/amd64"];
    assert_eq!(
        words(&platform),
        format!("sha256:{chain_id}  test  108.0 KiB, 1 of 1 disks made\n")
    );
    assert_eq!(
        words(&platform),
        format!("sha256:{chain_id}  test  108.0 KiB, already there\n")
    );
    assert_eq!(
        words(&["ls"]),
        format!("sha256:{chain_id}  1 layer  108.0 KiB of which 8.0 KiB metadata\n")
    );
    assert_eq!(
        words(&["verify"]),
        "1 disks, 3 chunks of 116.0 KiB, 0 of them unused: 0 damaged or missing\n"
    );
    let file = path("disk.erofs");
    assert_eq!(words(&["export", &format!("sha256:{chain_id}"), &file]), "");
    assert!(fs::read(&file).unwrap() == expected);
}

#[test]
fn a_failure_is_one_line_that_says_what_to_do() {
    let directory = tempdir().unwrap();
    let path = directory.path().display().to_string();
    let check = |words: &[&str], expected: &str| {
        let (code, out, err) = run(words);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{words:?}");
        assert_eq!(err, format!("snapshotter-remote: {expected}\n"));
    };
    check(
        &["ls", "--dir", &path],
        &format!("{path} has no key, so it is no store: `store add` makes one"),
    );
    check(
        &["add", "/none.tar", "--dir", &path],
        "reading the image /none.tar: No such file or directory (os error 2)",
    );
    Store::create(directory.path()).unwrap();
    let name = "0".repeat(64);
    check(
        &["export", &name, "/tmp/x", "--dir", &path],
        &format!("the store has no disks/1/{name}"),
    );
    fs::write(directory.path().join("key"), "rubbish").unwrap();
    check(
        &["verify", "--dir", &path],
        &format!("{path}/key: no line of a private key: pouch-ed25519-private, 64 digits"),
    );
}

fn chunks(store: &Path) -> usize {
    let Ok(directories) = fs::read_dir(store.join("chunks")) else {
        return 0;
    };
    let directories = directories.map(|entry| entry.unwrap().path());
    directories
        .map(|directory| fs::read_dir(directory).unwrap().count())
        .sum()
}

#[test]
fn an_add_that_is_killed_leaves_nothing_half_and_the_next_one_goes_on() {
    let directory = tempdir().unwrap();
    let store_path = directory.path().join("store");
    let layers = [
        layer(&[("x", &noise(1, 6 << 20))]),
        layer(&[("y", &noise(2, 6 << 20))]),
    ];
    let image = directory.path().join("image");
    Layout::of(&packed(&layers, &[<[u8]>::to_vec])).directory(&image);
    let words = [
        "add",
        image.to_str().unwrap(),
        "--platform",
        "linux/amd64",
        "--dir",
        store_path.to_str().unwrap(),
    ];
    let store = Store::create(&store_path).unwrap();
    let (mut kills, mut put) = (0, 0);
    loop {
        let mut adding = command(&words).stdout(Stdio::null()).spawn().unwrap();
        // Until it has put one more, or is done.
        let ended = loop {
            if let Some(status) = adding.try_wait().unwrap() {
                break Some(status);
            }
            if chunks(&store_path) > put {
                adding.kill().unwrap();
                adding.wait().unwrap();
                break None;
            }
            std::thread::yield_now();
        };
        let verified = store.verify().unwrap();
        assert!(verified.damages.is_empty(), "{verified:?}");
        match ended {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => kills += 1,
        }
        put = chunks(&store_path);
    }
    assert!(kills > 0, "it was never caught at work");
    let (chain_id, expected) = flat(&layers);
    let file = directory.path().join("disk");
    store.export(chain_id, &file).unwrap();
    assert!(fs::read(file).unwrap() == expected);
}
