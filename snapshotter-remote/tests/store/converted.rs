//! Images that a server converts because hosts ask for their disks: once, within limits, and only those that may be.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    images::{Layout, flat, gzip, layer, noise, packed},
    pulled::manifest,
    registry_server::{GOOD, Registry},
    served::metrics_of,
    server::{Answer, Server},
};
use snapshotter_remote::store::Store;
use tempfile::tempdir;

/// Nothing here takes as long.
const LIMIT: Duration = Duration::from_secs(120);

/// A configuration that allows images of a registry.
fn config(registry: &Registry, directory: &Path, hold_seconds: u64) -> String {
    format!(
        "[convert]\nenabled = true\nplatform = \"linux/amd64\"\nimages = [\"{}/image\"]\nhold_seconds = {hold_seconds}\n\
         [metrics]\naddress = \"unix:{}\"\n",
        registry.address,
        directory.join("metrics.sock").display()
    )
}

fn ask(server: &Server, chain_id: impl std::fmt::Display, image: &str) -> Answer {
    ask_with(server, chain_id, image, &[])
}

fn ask_with(
    server: &Server,
    chain_id: impl std::fmt::Display,
    image: &str,
    more: &[&str],
) -> Answer {
    let field = format!("Pouch-Image: {image}");
    let fields = [&[field.as_str()], more].concat();
    server.get(&format!("disks/1/{chain_id}"), &fields)
}

#[test]
fn an_image_is_converted_once_however_many_ask() {
    let directory = tempdir().unwrap();
    let store = directory.path().join("store");
    let layers = [
        layer(&[("a", &noise(1, 2_000_000))]),
        layer(&[("b", &noise(2, 2_000_000))]),
    ];
    let layout = Layout::of(&packed(&layers, &[gzip]));
    let registry = Registry::start(&layout, manifest(&layout), &GOOD);
    let image = registry.image();
    // The store is made for it.
    let server = Server::start(&store, &config(&registry, directory.path(), 20));
    let (lower, upper) = (flat(&layers[..1]).0, flat(&layers).0);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let asked = (0..8).map(|index| {
            let chain_id = if index % 2 == 0 { lower } else { upper };
            let (server, image) = (&server, &image);
            scope.spawn(move || ask(server, chain_id, image))
        });
        let asked: Vec<_> = asked.collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    for answer in &answers {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_ne!(answers[0].body, answers[1].body);
    let asked = registry.asked();
    assert_eq!(
        asked.len(),
        4,
        "manifest, config, two layers, each once: {asked:?}"
    );
    // It is there for who says nothing of an image, too; and of a disk that is not of it nobody hears anything else.
    assert_eq!(server.get(&format!("disks/1/{upper}"), &[]).status, 200);
    let other = flat(&[layer(&[("c", b"c")])]).0;
    let answer = ask(&server, other, &image);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (404, "the image that is named has no such disk\n")
    );
    assert!(registry.asked().is_empty());
    let metrics = metrics_of(&directory.path().join("metrics.sock"));
    let made = "snapshotter_remote_store_conversions_total{outcome=\"made\"} 1\n";
    assert!(metrics.contains(made), "{metrics}");
    assert!(
        metrics.contains("snapshotter_remote_store_conversions_running 0\n"),
        "{metrics}"
    );
}

#[test]
fn who_may_not_wait_is_told_to_ask_again() {
    is_told_to_ask_again(0, &[]);
}

#[test]
fn who_would_not_wait_is_told_to_ask_again() {
    is_told_to_ask_again(20, &["Prefer: wait=0"]);
}

fn is_told_to_ask_again(hold_seconds: u64, more: &[&str]) {
    let directory = tempdir().unwrap();
    let layers = [layer(&[("a", &noise(1, 1_000_000))])];
    let layout = Layout::of(&packed(&layers, &[gzip]));
    let registry = Registry::start(&layout, manifest(&layout), &GOOD);
    let config = config(&registry, directory.path(), hold_seconds);
    let server = Server::start(&directory.path().join("store"), &config);
    let chain_id = flat(&layers).0;
    let first = ask_with(&server, chain_id, &registry.image(), more);
    assert_eq!(
        (first.status, first.field("retry-after")),
        (202, "1"),
        "{first:?}"
    );
    assert_eq!(first.field("cache-control"), "no-store");
    let begun = Instant::now();
    let last = loop {
        let answer = ask_with(&server, chain_id, &registry.image(), more);
        if answer.status != 202 {
            break answer;
        }
        assert!(begun.elapsed() < LIMIT, "it is still not converted");
    };
    assert_eq!(last.status, 200, "{last:?}");
    assert_eq!(registry.asked().len(), 3, "manifest, config, one layer");
}

#[test]
fn who_converts_nothing_pays_no_heed_to_what_an_image_is_called() {
    let directory = tempdir().unwrap();
    Store::create(directory.path()).unwrap();
    let server = Server::start(directory.path(), "");
    let chain_id = flat(&[layer(&[("a", b"a")])]).0;
    for image in ["no image", "r.example/image:1"] {
        let answer = ask(&server, chain_id, image);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "the store has no such object\n"),
            "{image}"
        );
    }
}

#[test]
fn what_may_not_be_converted_or_cannot_be_is_absent() {
    let directory = tempdir().unwrap();
    let layers = [layer(&[("a", b"a")])];
    let layout = Layout::of(&packed(&layers, &[gzip]));
    let registry = Registry::start(&layout, manifest(&layout), &GOOD);
    let config = config(&registry, directory.path(), 20);
    let mut server = Server::start(&directory.path().join("store"), &config);
    let chain_id = flat(&layers).0;
    let check = |image: &str, status: u16, expected: &str| {
        let answer = ask(&server, chain_id, image);
        assert_eq!(answer.status, status, "{image}: {answer:?}");
        assert!(answer.text().contains(expected), "{image}: {answer:?}");
    };
    let address = registry.address;
    check("other.example/image:1", 404, "does not convert that image");
    check(
        &format!("{address}/images:1"),
        404,
        "does not convert that image",
    );
    check("no image", 400, "pouch-image");
    let none = server.get(&format!("disks/1/{chain_id}"), &[]);
    assert_eq!(
        (none.status, none.text().as_str()),
        (404, "the store has no such object\n")
    );
    assert!(registry.asked().is_empty());
    let missing = format!("{address}/image:none");
    check(&missing, 404, "did not become such a disk");
    check(&missing, 404, "could not be converted");
    assert_eq!(
        registry.asked(),
        ["manifests/none"],
        "what failed is left alone for a while"
    );
    let metrics = metrics_of(&directory.path().join("metrics.sock"));
    for line in [
        "conversions_total{outcome=\"failed\"} 1",
        "conversions_refused_total{why=\"not_allowed\"} 2",
        "conversions_refused_total{why=\"failed\"} 1",
    ] {
        assert!(
            metrics.contains(&format!("snapshotter_remote_store_{line}\n")),
            "{line}: {metrics}"
        );
    }
    let said = server.logs("cannot be converted");
    assert!(said.contains("manifest unknown"), "{said}");
}
