//! Random layers, merged by the crate and by a model that takes the image-spec's sentences one by one on
//! a flat list of paths.

use std::collections::{BTreeMap, BTreeSet};

use disk::{Kind, Path, Tree};
use proptest::prelude::*;

use super::tarball::{Entry, digest, directory, file, link, read, tar};

/// One line of a layer. The owner tells entries apart.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Directory(String, u32),
    File(String, u32),
    HardLink(String, String),
    Whiteout(String, String),
    Opaque(String),
}

/// What the model has at a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Directory(u32),
    File(u32),
}

type Model = BTreeMap<String, Item>;

fn below(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        return name.to_owned();
    }
    format!("{directory}/{name}")
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn remove_below(model: &mut Model, directory: &str) {
    model.retain(|path, _| !(directory.is_empty() || path.starts_with(&format!("{directory}/"))));
}

fn remove(model: &mut Model, path: &str) {
    model.remove(path);
    remove_below(model, path);
}

/// A removal counts where every part of its directory is a directory.
fn is_reached(model: &Model, directory: &str) -> bool {
    let leads = |path: &str| matches!(model.get(path), Some(Item::Directory(_)));
    directory.is_empty() || parents(directory).all(leads) && leads(directory)
}

/// "Applying Changesets", from its first sentence to its last.
fn apply(model: &mut Model, layer: &[Change]) {
    let lower = model.clone();
    for change in layer {
        match change {
            Change::Whiteout(directory, name) if is_reached(&lower, directory) => {
                remove(model, &below(directory, name));
            }
            Change::Opaque(directory) if is_reached(&lower, directory) => {
                remove_below(model, directory);
            }
            _ => {}
        }
    }
    let remaining = model.clone();
    for change in layer {
        let (path, item) = match change {
            Change::Directory(path, id) => (path, Item::Directory(*id)),
            Change::File(path, id) => (path, Item::File(*id)),
            Change::HardLink(path, target) => {
                let here = layer.iter().any(|change| {
                    matches!(change, Change::File(path, _) | Change::HardLink(path, _) if path == target)
                });
                let from = if here { &*model } else { &remaining };
                (path, from[target].clone())
            }
            Change::Whiteout(..) | Change::Opaque(_) => continue,
        };
        for parent in parents(path) {
            if !matches!(model.get(parent), Some(Item::Directory(_))) {
                remove(model, parent);
                model.insert(parent.to_owned(), Item::Directory(0));
            }
        }
        if !matches!(
            (&item, model.get(path)),
            (Item::Directory(_), Some(Item::Directory(_)))
        ) {
            remove(model, path);
        }
        model.insert(path.clone(), item);
    }
}

fn written(change: &Change) -> Entry {
    let owned = |uid: u32, entry| Entry { uid, ..entry };
    match change {
        Change::Directory(path, id) => owned(*id, directory(path)),
        Change::File(path, id) => owned(*id, file(path, "")),
        Change::HardLink(path, target) => link(b'1', path, target),
        Change::Whiteout(directory, name) => file(&below(directory, &format!(".wh.{name}")), ""),
        Change::Opaque(directory) => file(&below(directory, ".wh..wh..opq"), ""),
    }
}

/// All of a tree; the model's file of an owner is one inode.
fn flatten(tree: &Tree) -> Model {
    let mut model = Model::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![(Tree::ROOT, String::new())];
    while let Some((id, path)) = pending.pop() {
        for (name, child) in tree.children(id) {
            let path = below(&path, std::str::from_utf8(name).unwrap());
            let inode = tree.inode(child);
            let uid = inode.attributes.uid;
            let item = match inode.kind {
                Kind::Directory(_) => Item::Directory(uid),
                Kind::Leaf(_) => Item::File(uid),
            };
            if let Item::File(_) = item {
                assert_eq!(
                    *inodes.entry(uid).or_insert(child),
                    child,
                    "two inodes of one file"
                );
            }
            model.insert(path.clone(), item);
            pending.push((child, path));
        }
    }
    model
}

fn paths() -> impl Strategy<Value = String> {
    let name = prop::sample::select(&["a", "b", "c"][..]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn changes() -> impl Strategy<Value = Change> {
    let split = |path: String| match path.rsplit_once('/') {
        Some((directory, name)) => Change::Whiteout(directory.to_owned(), name.to_owned()),
        None => Change::Whiteout(String::new(), path),
    };
    prop_oneof![
        3 => paths().prop_map(|path| Change::Directory(path, 0)),
        4 => paths().prop_map(|path| Change::File(path, 0)),
        1 => (paths(), paths()).prop_map(|(path, target)| Change::HardLink(path, target)),
        2 => paths().prop_map(split),
        1 => paths().prop_map(Change::Opaque),
    ]
}

/// The changes that stand together in one legal layer; each gets an owner of its own.
fn legal(layer: usize, changes: Vec<Change>) -> Vec<Change> {
    let (mut files, mut directories) = (BTreeSet::new(), BTreeSet::new());
    let mut kept: Vec<Change> = Vec::new();
    for (index, mut change) in changes.into_iter().enumerate() {
        let owner = u32::try_from(layer * 100 + index + 1).unwrap();
        let leading = match &mut change {
            Change::Directory(path, id) | Change::File(path, id) => {
                *id = owner;
                path.clone()
            }
            Change::HardLink(path, _) => path.clone(),
            Change::Whiteout(directory, name) => below(directory, name),
            Change::Opaque(directory) => below(directory, "x"),
        };
        let leads: Vec<String> = parents(&leading).map(str::to_owned).collect();
        let is_file = matches!(change, Change::File(..) | Change::HardLink(..));
        let is_taken = files.contains(&leading) || is_file && directories.contains(&leading);
        let is_removal = matches!(change, Change::Whiteout(..) | Change::Opaque(_));
        if !is_removal && is_taken || leads.iter().any(|path| files.contains(path)) {
            continue;
        }
        directories.extend(leads);
        match change {
            Change::Directory(..) => drop(directories.insert(leading)),
            Change::File(..) | Change::HardLink(..) => drop(files.insert(leading)),
            _ => {}
        }
        kept.push(change);
    }
    kept
}

fn check(layers: Vec<Vec<Change>>) -> Result<(), TestCaseError> {
    let (mut tree, mut model) = (Tree::new(), Model::new());
    for (index, changes) in layers.into_iter().enumerate() {
        let changes = legal(index, changes);
        let entries: Vec<Entry> = changes.iter().map(written).collect();
        let applied = read(&tar(&entries)).and_then(|(layer, _)| tree.apply(&layer, digest(index)));
        if let Err(error) = applied {
            // Links to what is not there, or not yet, are refused: that is tested by name.
            prop_assert!(error.to_string().contains("hard link"), "{error}");
            continue;
        }
        apply(&mut model, &changes);
        prop_assert_eq!(flatten(&tree), model.clone());
        for (path, item) in &model {
            let found = tree.lookup(&Path::parse(path.as_bytes()).unwrap()).unwrap();
            let (Item::Directory(uid) | Item::File(uid)) = item;
            prop_assert_eq!(tree.inode(found).attributes.uid, *uid);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn layers_add_up_as_the_image_spec_says(
        layers in prop::collection::vec(prop::collection::vec(changes(), 0..12), 1..5),
    ) {
        check(layers)?;
    }
}
