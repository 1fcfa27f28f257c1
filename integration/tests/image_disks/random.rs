//! Layers with whatever names, lengths and attributes chance brings: the tree is merged by the crate,
//! and the kernel must show it.

use std::collections::{BTreeMap, BTreeSet};

use integration::{
    images::{Content, Device, Entry, Layer},
    random::Random,
};

use super::{converted::Converted, kernel};

/// Directories that all layers may use; nothing else has their names.
const DIRECTORIES: [&str; 6] = ["", "d", "d/e", "d/e/f", "!", "~"];

/// Lengths around what a block, an inode or a name holds.
const LENGTHS: [u64; 12] = [
    1, 27, 200, 3900, 3999, 4031, 4032, 4064, 4095, 4096, 5000, 60_000,
];

/// `count` layers, as tars.
pub(crate) fn layers(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    let layers = std::iter::repeat_with(|| {
        let mut tar = Vec::new();
        layer(&mut random).write(&mut tar).unwrap();
        tar
    });
    layers.take(count).collect()
}

fn layer(random: &mut Random) -> Layer {
    let mut layer = Layer::default();
    let (mut files, mut used) = (Vec::new(), BTreeSet::new());
    for _ in 0..80 {
        let directory = *random.choose(&DIRECTORIES);
        let name = name(random);
        let path = if directory.is_empty() {
            name
        } else {
            format!("{directory}/{name}")
        };
        if !used.insert(path.clone()) {
            continue;
        }
        let content = content(random, &files);
        let is_file = matches!(content, Content::File(_));
        let is_link = matches!(content, Content::HardLink(_));
        let mut entry = Entry {
            content,
            mode: u32::try_from(random.below(0o10000)).unwrap(),
            uid: *random.choose(&[0, 1000, 65535, 65536, 4_000_000_000]),
            gid: *random.choose(&[0, 44, 65536]),
            xattrs: BTreeMap::new(),
        };
        if is_file && random.below(3) == 0 {
            add_xattrs(random, &mut entry);
        }
        if !is_link {
            files.push(path.clone());
        }
        layer.insert(&path, entry);
    }
    for _ in 0..10 {
        match (random.below(8), *random.choose(&DIRECTORIES)) {
            (0, directory) if !directory.is_empty() => layer.opaque(directory),
            (_, directory) => {
                layer.whiteout(&format!("{directory}/{}", name(random)).replace("//", "/"));
            }
        }
    }
    layer
}

/// Some before `.` in the order of bytes, some long, few, so that layers meet.
fn name(random: &mut Random) -> String {
    let number = random.below(12);
    match random.below(6) {
        0 => format!("-{number}"),
        1 => format!("é\n{number}"),
        2 => format!("{number:0>255}"),
        _ => format!("name-{number}"),
    }
}

fn content(random: &mut Random, files: &[String]) -> Content {
    let length = *random.choose(&LENGTHS);
    match random.below(10) {
        0 if !files.is_empty() => Content::HardLink(random.choose(files).clone()),
        1 => Content::Symlink("t".repeat(usize::try_from(length.min(4095)).unwrap())),
        2 => Content::Fifo,
        3 => Content::Device(Device::Block(4095, 1_048_575)),
        4 => Content::Device(Device::Character(1, 300)),
        5 => Content::File(Vec::new()),
        _ => Content::File(vec![
            u8::try_from(random.below(256)).unwrap();
            usize::try_from(length).unwrap()
        ]),
    }
}

fn add_xattrs(random: &mut Random, entry: &mut Entry) {
    for number in 0..random.below(4) {
        let name = *random.choose(&["user", "trusted", "security"]);
        let length = usize::try_from(*random.choose(&LENGTHS)).unwrap();
        // Few values, so that inodes share some.
        let value = vec![u8::try_from(random.below(2)).unwrap(); length];
        entry.xattrs.insert(format!("{name}.{number}"), value);
    }
}

#[test]
fn random_layers_look_as_they_were_merged() {
    for seed in 0..100 {
        let layers = layers(seed, 4);
        let converted = Converted::of(layers.iter().map(Vec::as_slice)).unwrap();
        kernel::check(&converted).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    }
}
