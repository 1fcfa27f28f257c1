//! Tars byte by byte, so that they may be wrong; and what a layer of them adds up to, as text.

use std::{collections::BTreeMap, fmt::Write, io::Cursor};

use disk::{Attributes, DataBlocks, Digest, Kind, Layer, Leaf, Limits, Tree};

/// An entry as it is written.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) flag: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    /// Records of an extended header before it.
    pub(crate) pax: Vec<(String, Vec<u8>)>,
}

pub(crate) fn entry(flag: u8, name: &str) -> Entry {
    Entry {
        flag,
        name: name.into(),
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        device: (0, 0),
        data: Vec::new(),
        pax: Vec::new(),
    }
}

pub(crate) fn file(name: &str, data: &str) -> Entry {
    entry(b'0', name).data(data.as_bytes())
}

pub(crate) fn directory(name: &str) -> Entry {
    Entry {
        mode: 0o755,
        ..entry(b'5', name)
    }
}

pub(crate) fn link(flag: u8, name: &str, target: &str) -> Entry {
    Entry {
        link: target.into(),
        ..entry(flag, name)
    }
}

impl Entry {
    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data = data.to_owned();
        self
    }

    pub(crate) fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let records = self.pax.iter();
            let records: Vec<u8> = records
                .flat_map(|(key, value)| record(key, value))
                .collect();
            entry(b'x', "pax").data(&records).write(out);
        }
        let mut header = self.header();
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }

    /// With spaces in place of the checksum.
    pub(crate) fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, format!("{:07o}\0", self.uid).as_bytes());
        put(116, format!("{:07o}\0", self.gid).as_bytes());
        put(124, format!("{:011o}\0", self.data.len()).as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[self.flag]);
        put(157, &self.link);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, format!("{:07o}\0", self.device.1).as_bytes());
        header
    }
}

/// One PAX record, whose length counts its own digits.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length += 1;
    }
    let mut out = format!("{length} {key}=").into_bytes();
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}

/// The entries with the end of a tar.
pub(crate) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut out));
    out.extend_from_slice(&[0; 1024]);
    out
}

/// A layer, stored and read back, and its blob.
pub(crate) fn read(tar: &[u8]) -> disk::Result<(Layer, Vec<u8>)> {
    read_limited(tar, &Limits::GENEROUS)
}

pub(crate) fn read_limited(tar: &[u8], limits: &Limits) -> disk::Result<(Layer, Vec<u8>)> {
    let mut blob = Cursor::new(Vec::new());
    let layer = Layer::read(tar, &mut blob, limits)?;
    let blob = blob.into_inner();
    assert_eq!(blob.len(), layer.blob_blocks as usize * 4096);
    let bytes = layer.encode();
    let stored = Layer::decode(&bytes, limits).expect("what could be read can be read back");
    assert_eq!(stored.encode(), bytes);
    Ok((stored, blob))
}

/// The tree of these tars, lowest first, and their blobs.
pub(crate) fn tree(tars: &[Vec<u8>]) -> disk::Result<(Tree, Vec<Vec<u8>>)> {
    let (mut tree, mut blobs) = (Tree::new(), Vec::new());
    for (index, tar) in tars.iter().enumerate() {
        let (layer, blob) = read(tar)?;
        tree.apply(&layer, digest(index))?;
        blobs.push(blob);
    }
    Ok((tree, blobs))
}

/// A name for the layer of that index.
pub(crate) fn digest(index: usize) -> Digest {
    Digest([u8::try_from(index).unwrap() + 1; 32])
}

/// A line for each path: what it is, its attributes, its contents; a second name says of what.
pub(crate) fn listing(tree: &Tree, blobs: &[Vec<u8>]) -> String {
    let (mut out, mut names) = (String::new(), BTreeMap::new());
    let mut pending = vec![(Tree::ROOT, String::new())];
    while let Some((id, path)) = pending.pop() {
        let inode = tree.inode(id);
        let shown = if path.is_empty() { "/" } else { &path };
        if let Some(first) = names.get(&id) {
            writeln!(out, "{shown} is {first}").unwrap();
            continue;
        }
        names.insert(id, shown.to_owned());
        let what = match &inode.kind {
            Kind::Directory(_) => "directory".to_owned(),
            Kind::Leaf(leaf) => describe(leaf, blobs.get(inode.layer).map_or(&[], |blob| blob)),
        };
        writeln!(out, "{shown} {} {what}", attributes(&inode.attributes)).unwrap();
        let children = tree.children(id);
        let children = children.map(|(name, id)| (id, format!("{path}/{}", name.escape_ascii())));
        let children: Vec<_> = children.collect();
        pending.extend(children.into_iter().rev());
    }
    out
}

fn attributes(attributes: &Attributes) -> String {
    let mut out = format!(
        "{:o} {}:{}",
        attributes.mode, attributes.uid, attributes.gid
    );
    let time = attributes.mtime;
    if (time.seconds, time.nanoseconds) != (0, 0) {
        write!(out, " @{}.{:09}", time.seconds, time.nanoseconds).unwrap();
    }
    for (name, value) in &attributes.xattrs {
        write!(out, " {}={}", name.escape_ascii(), value.escape_ascii()).unwrap();
    }
    out
}

fn describe(leaf: &Leaf, blob: &[u8]) -> String {
    match leaf {
        Leaf::File(file) => {
            let start = file.first_block as usize * 4096;
            let bytes = &blob[start..start + usize::try_from(file.bytes).unwrap()];
            let holes = match &file.data {
                DataBlocks::All => String::new(),
                DataBlocks::Ranges(ranges) => format!(" data {ranges:?}"),
            };
            if bytes.len() > 64 {
                return format!("file of {} bytes{holes}", bytes.len());
            }
            format!("file {:?}{holes}", bytes.escape_ascii().to_string())
        }
        Leaf::Symlink(target) => format!("-> {}", target.escape_ascii()),
        Leaf::CharacterDevice(it) => format!("character {}:{}", it.major, it.minor),
        Leaf::BlockDevice(it) => format!("block {}:{}", it.major, it.minor),
        Leaf::Fifo => "fifo".to_owned(),
    }
}
