//! The tar of a layer, whose entries say anything, and the disk that comes of two of them.

#![no_main]

use std::io::Cursor;

use disk::{Digest, Form, Image, Layer, Limits, Tree};
use libfuzzer_sys::fuzz_target;

/// Types of entries, those that no image has among them.
const FLAGS: &[u8] = b"0123456712051xgLKSVM\0";

/// Keys of PAX records that mean something.
const KEYS: [&str; 16] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "mtime",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.realsize",
    "GNU.sparse.size",
    "GNU.sparse.name",
    "GNU.sparse.map",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.security.capability",
    "SCHILY.xattr.system.posix_acl_access",
];

const LIMITS: Limits = Limits {
    entries_max: 1000,
    metadata_bytes_max: 1 << 20,
    header_bytes_max: 1 << 16,
    blob_bytes_max: 1 << 20,
};

/// Type, name, target, what follows the name's fields, PAX records, data.
type Entry<'a> = (
    u8,
    &'a [u8],
    &'a [u8],
    &'a [u8],
    Vec<(u8, &'a [u8])>,
    &'a [u8],
);

fuzz_target!(|layers: (Vec<Entry<'_>>, Vec<Entry<'_>>, &[u8])| {
    let mut tree = Tree::new();
    for (index, entries) in [&layers.0, &layers.1].into_iter().enumerate() {
        let mut tar = Vec::new();
        entries.iter().for_each(|entry| write(entry, &mut tar));
        tar.extend_from_slice(layers.2);
        let mut blob = Cursor::new(Vec::new());
        let Ok(layer) = Layer::read(&tar[..], &mut blob, &LIMITS) else {
            continue;
        };
        let blob = blob.into_inner();
        assert_eq!(blob.len(), layer.blob_blocks as usize * 4096);
        assert!(blob.len() as u64 <= LIMITS.blob_bytes_max);
        let _refused_or_not = tree.apply(&layer, Digest([index as u8; 32]));
    }
    check_names(&tree);
    for form in [Form::Devices, Form::Flat] {
        let image = Image::of(&tree, Digest([9; 32]), form).expect("it is small");
        let mut metadata = Vec::new();
        image.write(&mut metadata).expect("memory takes it");
        assert_eq!(metadata.len() as u64, image.metadata_bytes());
    }
});

/// Nothing in a tree has a name that leads elsewhere.
fn check_names(tree: &Tree) {
    let mut pending = vec![Tree::ROOT];
    while let Some(id) = pending.pop() {
        for (name, child) in tree.children(id) {
            let is_plain = !name.contains(&b'/') && !name.contains(&0) && name.len() <= 255;
            assert!(is_plain && !matches!(&**name, b"" | b"." | b".."));
            assert!(!name.starts_with(b".wh."));
            pending.push(child);
        }
    }
}

fn write((flag, name, link, rest, records, data): &Entry<'_>, tar: &mut Vec<u8>) {
    let mut pax = Vec::new();
    for (key, value) in records {
        let key = KEYS[usize::from(*key) % KEYS.len()];
        let length = key.len() + value.len() + 3;
        let digits = (1..).find(|digits| (length + digits).to_string().len() == *digits);
        let length = length + digits.expect("a length has digits");
        pax.extend_from_slice(format!("{length} {key}=").as_bytes());
        pax.extend_from_slice(value);
        pax.push(b'\n');
    }
    if !pax.is_empty() {
        block(b'x', b"pax", b"", b"", pax.len(), tar);
        put(&pax, tar);
    }
    let flag = FLAGS[usize::from(*flag) % FLAGS.len()];
    block(flag, name, link, rest, data.len(), tar);
    put(data, tar);
}

fn block(flag: u8, name: &[u8], link: &[u8], rest: &[u8], size: usize, tar: &mut Vec<u8>) {
    let mut header = [0; 512];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(most)];
        header[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, 100, name);
    put(124, 12, format!("{size:011o}").as_bytes());
    put(156, 1, &[flag]);
    put(157, 100, link);
    put(257, 8, b"ustar  \0");
    // Magic, owners' names, device numbers, prefix or sparse map.
    put(257, 255, rest);
    let sum = 8 * u32::from(b' ') + header.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
}

/// Data, filled up to a block.
fn put(data: &[u8], tar: &mut Vec<u8>) {
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
