//! What a converted tree must look like to the kernel.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use anyhow::Result;
use disk::{BLOCK_BYTES, Inode, InodeId, Kind, Leaf, Tree};
use integration::listing::{Contents, Facts, Listing, below};
use sha2::{Digest as _, Sha256};

use super::converted::Converted;

/// The tree as a listing, contents read from its blobs.
pub(crate) fn listing(converted: &Converted) -> Result<Listing> {
    let tree = &converted.tree;
    let mut listing = Listing::default();
    let mut names: BTreeMap<InodeId, Vec<Vec<u8>>> = BTreeMap::new();
    let mut pending = vec![(Tree::ROOT, Vec::new())];
    while let Some((id, path)) = pending.pop() {
        // What has many names is read once.
        let facts = match names.get(&id) {
            Some(names) => listing.entries[&names[0]].clone(),
            None => facts(converted, id)?,
        };
        listing.entries.insert(path.clone(), facts);
        let children = tree.children(id);
        pending.extend(children.map(|(name, child)| (child, below(&path, name))));
        if let Kind::Leaf(_) = tree.inode(id).kind {
            names.entry(id).or_default().push(path);
        }
    }
    for mut paths in names.into_values() {
        paths.sort_unstable();
        for path in &paths {
            let facts = listing.entries.get_mut(path).expect("it was listed");
            facts.links = paths.len() as u64;
            facts.same_as = (*path != paths[0]).then(|| paths[0].clone());
        }
    }
    Ok(listing)
}

fn facts(converted: &Converted, id: InodeId) -> Result<Facts> {
    let tree = &converted.tree;
    let inode = tree.inode(id);
    let attributes = &inode.attributes;
    let is_directory =
        |(_, child): &(_, InodeId)| matches!(tree.inode(*child).kind, Kind::Directory(_));
    let (kind, contents) = match &inode.kind {
        Kind::Directory(_) => (0o040_000, Contents::Nothing),
        Kind::Leaf(Leaf::File(_)) => (0o100_000, contents(converted, inode)?),
        Kind::Leaf(Leaf::Symlink(target)) => (0o120_000, Contents::Symlink(target.to_vec())),
        Kind::Leaf(Leaf::CharacterDevice(_)) => (0o020_000, Contents::Nothing),
        Kind::Leaf(Leaf::BlockDevice(_)) => (0o060_000, Contents::Nothing),
        Kind::Leaf(Leaf::Fifo) => (0o010_000, Contents::Nothing),
    };
    let device = match &inode.kind {
        Kind::Leaf(Leaf::CharacterDevice(it) | Leaf::BlockDevice(it)) => {
            nix::sys::stat::makedev(it.major.into(), it.minor.into())
        }
        _ => 0,
    };
    let xattrs = attributes.xattrs.iter();
    Ok(Facts {
        mode: kind | u32::from(attributes.mode),
        uid: attributes.uid,
        gid: attributes.gid,
        links: 2 + tree.children(id).filter(is_directory).count() as u64,
        device,
        mtime: (
            attributes.mtime.seconds,
            attributes.mtime.nanoseconds.into(),
        ),
        xattrs: xattrs
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect(),
        contents,
        same_as: None,
    })
}

fn contents(converted: &Converted, inode: &Inode) -> Result<Contents> {
    let Kind::Leaf(Leaf::File(file)) = &inode.kind else {
        return Ok(Contents::Nothing);
    };
    let mut blob = File::open(converted.blob(converted.tree.blobs()[inode.layer].diff_id))?;
    blob.seek(SeekFrom::Start(u64::from(file.first_block) * BLOCK_BYTES))?;
    let mut sum = Sha256::new();
    std::io::copy(&mut blob.take(file.bytes), &mut sum)?;
    Ok(Contents::File(file.bytes, sum.finalize().into()))
}
