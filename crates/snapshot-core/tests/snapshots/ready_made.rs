//! Layers that the driver has before they are pulled, asked for as containerd's unpacker does.

use snapshot_core::{Error, Info, Kind, Result, TARGET_LABEL};

use crate::root::{Root, key, labels};

const LAYER: &str = "sha256:01";
const UPPER: &str = "sha256:02";

fn prepare(root: &Root, name: &str, parent: Option<&str>, target: &str) -> Result<()> {
    let parent = parent.map(key);
    let asked = labels(&[(TARGET_LABEL, target), ("other", "kept")]);
    let prepared = root.snapshots().prepare(&key(name), parent.as_ref(), asked);
    prepared.map(drop)
}

/// What containerd's metadata layer looks for then.
fn found(root: &Root, target: &str, parent: &str) -> Vec<Info> {
    let filter = format!("labels.\"{TARGET_LABEL}\"=={target},parent==\"{parent}\"");
    root.list(&[&filter])
}

#[track_caller]
fn exists(outcome: Result<()>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(_)), "{error}");
}

#[test]
fn a_layer_that_is_there_is_committed_under_its_label_and_parent() {
    let mut root = Root::new();
    root.driver.has_ready_made(LAYER);
    root.driver.has_ready_made(UPPER);
    exists(prepare(&root, "default/1/extract", None, LAYER));
    let [lower] = &found(&root, LAYER, "")[..] else {
        panic!("there is one");
    };
    assert_eq!(lower.kind, Kind::Committed);
    assert_eq!(lower.labels["other"], "kept");
    let lower = lower.name.to_string();
    exists(prepare(&root, "default/2/extract", Some(&lower), UPPER));
    let upper = found(&root, UPPER, &lower).remove(0).name.to_string();
    // Another namespace, a second attempt, a restart: it is the same one.
    exists(prepare(&root, "other/3/extract", None, LAYER));
    root.reopen();
    exists(prepare(&root, "default/1/extract", None, LAYER));
    assert_eq!(root.names().len(), 2);
    assert_eq!(root.directories().len(), 2);
    // The one that was asked for is free.
    root.prepare("default/1/extract", Some(&upper)).unwrap();
    for name in ["default/1/extract", &upper, &lower] {
        root.remove(name).unwrap();
    }
    root.snapshots().cleanup().unwrap();
    assert_eq!(root.directories().len(), 0);
    let notes = root.driver.released().into_iter();
    let notes: Vec<_> = notes.filter_map(|(_, note)| Some(note?.0)).collect();
    assert!(notes.contains(&format!("ready-made {LAYER}")), "{notes:?}");
}

#[test]
fn a_layer_that_is_not_there_is_unpacked() {
    let root = Root::new();
    root.driver.has_ready_made(LAYER);
    prepare(&root, "extract", None, UPPER).unwrap();
    let info = root.snapshots().stat(&key("extract")).unwrap();
    assert_eq!(info.kind, Kind::Active);
    root.commit("layer", "extract", None).unwrap();
    // The same target on another parent is another snapshot.
    exists(prepare(&root, "a", None, LAYER));
    exists(prepare(&root, "b", Some("layer"), LAYER));
    assert_eq!(found(&root, LAYER, "").len(), 1);
    assert_eq!(found(&root, LAYER, "layer").len(), 1);
    // A view is not going to be unpacked into.
    let asked = labels(&[(TARGET_LABEL, LAYER)]);
    let layer = key("layer");
    root.snapshots()
        .view(&key("v"), Some(&layer), asked)
        .unwrap();
}

#[test]
fn a_layer_whose_label_was_taken_away_is_unpacked() {
    let root = Root::new();
    root.driver.has_ready_made(LAYER);
    exists(prepare(&root, "a", None, LAYER));
    let name = found(&root, LAYER, "").remove(0).name;
    root.snapshots().update(&name, &[], &labels(&[])).unwrap();
    prepare(&root, "a", None, LAYER).unwrap();
    assert_eq!(root.snapshots().stat(&key("a")).unwrap().kind, Kind::Active);
}
