//! Where everything goes, before a byte is written: inode numbers, block addresses, devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    BLOCK, SLOT,
    directory::Entries,
    image::Form,
    inode::{Contents, header_bytes},
    shared::Shared,
    superblock,
};
use crate::{
    error::{Error, Result},
    tree::{Blob, DataBlocks, File, InodeId, Kind, Leaf, Tree},
};

/// A sparse file has at most so many addresses, so its chunks are as long as that takes.
const CHUNKS_MAX: u32 = 4096;

/// One inode of the image.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) id: InodeId,
    /// The directory it is first found in; the root's is the root.
    pub(super) parent: InodeId,
    pub(super) links: u32,
    /// Length of its contents in bytes.
    pub(super) bytes: u64,
    pub(super) xattr_bytes: usize,
    pub(super) shape: Shape,
    /// Its slot.
    pub(super) nid: u64,
    /// First block of contents that lie in the image, counted from the end of inodes.
    pub(super) first_block: u32,
}

/// What is stored of an inode's contents, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing in the image: in a blob, or there are none.
    Elsewhere,
    /// A sparse file's chunks of 2ⁿ blocks: an address for each behind the inode.
    Chunks { bits: u8, count: u32 },
    /// In blocks of the image, the last one too.
    Blocks,
    /// In blocks of the image, the last, which is not full, behind the inode.
    Inline,
}

/// The whole image.
#[derive(Debug)]
pub(super) struct Plan<'t> {
    pub(super) inodes: Vec<Placed>,
    pub(super) shared: Shared<'t>,
    /// Which of the tree's blobs are used, and the blocks where they begin.
    pub(super) devices: Vec<(Blob, u32)>,
    /// For each of the tree's blobs the block where it begins, if it is used.
    blob_blocks: Vec<u32>,
    /// For each inode of the tree its slot.
    nids: Vec<u64>,
    pub(super) shared_block: u32,
    pub(super) inode_block: u32,
    pub(super) directory_block: u32,
    /// Blocks of the metadata image.
    pub(super) blocks: u32,
    /// Blocks of all devices.
    pub(super) all_blocks: u32,
}

impl<'t> Plan<'t> {
    pub(super) fn of(tree: &'t Tree, form: Form) -> Result<Self> {
        let mut inodes = reachable(tree);
        let all = inodes.iter();
        let shared = Shared::of(all.map(|placed| &tree.inode(placed.id).attributes.xattrs));
        let blobs = used_blobs(tree, &inodes);
        let table = match form {
            Form::Devices => blobs.len(),
            Form::Flat => 0,
        };
        if u16::try_from(blobs.len()).is_err() {
            return Err(too_large("a disk of more than 65535 layers"));
        }
        // The first slot stays empty: 0 is no inode number that readdir(3) could tell.
        let (mut slots, mut directory_blocks) = (SLOT, 0_u32);
        let mut nids = vec![0; tree.inodes.len()];
        for placed in &mut inodes {
            measure(tree, form, &shared, placed);
            place(tree, placed, &mut slots, &mut directory_blocks)?;
            nids[placed.id.0] = placed.nid;
        }
        let shared_block = superblock::blocks(table);
        let blocks_of = |bytes: usize| u32::try_from(bytes.div_ceil(BLOCK)).ok();
        let inode_block =
            blocks_of(shared.bytes().len()).and_then(|it| it.checked_add(shared_block));
        let directory_block = inode_block
            .zip(blocks_of(slots))
            .and_then(|(a, b)| a.checked_add(b));
        let blocks = directory_block.and_then(|it| it.checked_add(directory_blocks));
        let (Some(inode_block), Some(directory_block), Some(blocks)) =
            (inode_block, directory_block, blocks)
        else {
            return Err(too_large("a disk with more than 16 TiB of names"));
        };
        let mut plan = Self {
            inodes,
            shared,
            devices: Vec::new(),
            blob_blocks: Vec::new(),
            nids,
            shared_block,
            inode_block,
            directory_block,
            blocks,
            all_blocks: blocks,
        };
        plan.map_blobs(tree, &blobs)?;
        Ok(plan)
    }

    /// Gives each blob its addresses; a layer that comes twice is one device.
    fn map_blobs(&mut self, tree: &Tree, used: &[usize]) -> Result<()> {
        let mut first_blocks = BTreeMap::new();
        for &index in used {
            let blob = tree.blobs[index];
            first_blocks.insert(blob.diff_id, self.all_blocks);
            self.devices.push((blob, self.all_blocks));
            let next = self.all_blocks.checked_add(blob.blocks);
            // The last address means a hole.
            let next = next.filter(|&next| next < u32::MAX);
            self.all_blocks = next.ok_or_else(|| too_large("a disk of more than 16 TiB"))?;
        }
        let blobs = tree.blobs.iter();
        let first_blocks = blobs.map(|blob| first_blocks.get(&blob.diff_id));
        self.blob_blocks = first_blocks.map(|it| it.copied().unwrap_or(0)).collect();
        Ok(())
    }

    pub(super) fn nid(&self, id: InodeId) -> u64 {
        self.nids[id.0]
    }

    /// Where an inode's contents are.
    pub(super) fn contents(&self, tree: &Tree, placed: &Placed) -> Contents {
        let inode = tree.inode(placed.id);
        match (&inode.kind, placed.shape) {
            (Kind::Leaf(Leaf::CharacterDevice(device) | Leaf::BlockDevice(device)), _) => {
                Contents::Device(*device)
            }
            (_, Shape::Chunks { bits, .. }) => Contents::Chunks(bits),
            (Kind::Leaf(Leaf::File(file)), _) => Contents::Blocks(self.address(inode.layer, file)),
            (_, Shape::Inline) => Contents::Inline(self.directory_block + placed.first_block),
            (_, Shape::Blocks) => Contents::Blocks(self.directory_block + placed.first_block),
            (_, Shape::Elsewhere) => Contents::Blocks(0),
        }
    }

    /// Addresses of a sparse file's chunks; all ones for a hole.
    pub(super) fn chunks(&self, layer: usize, file: &File, bits: u8) -> Vec<u32> {
        let first = self.address(layer, file);
        let count = blocks(file).div_ceil(1 << bits);
        let DataBlocks::Ranges(ranges) = &file.data else {
            return Vec::new();
        };
        let is_data = |chunk: &Range<u64>| {
            let later = ranges.partition_point(|range| u64::from(range.end) <= chunk.start);
            let range = ranges.get(later);
            range.is_some_and(|range| u64::from(range.start) < chunk.end)
        };
        (0..count)
            .map(|index| {
                let start = u64::from(index) << bits;
                let chunk = start..start + (1 << bits);
                let offset = u32::try_from(start).expect("a file's blocks are 32-bit numbers");
                if is_data(&chunk) {
                    first + offset
                } else {
                    u32::MAX
                }
            })
            .collect()
    }

    fn address(&self, layer: usize, file: &File) -> u32 {
        if file.bytes == 0 {
            return 0;
        }
        self.blob_blocks[layer] + file.first_block
    }
}

/// All inodes that names lead to, parents before children, siblings by name.
fn reachable(tree: &Tree) -> Vec<Placed> {
    let mut inodes: Vec<Placed> = Vec::new();
    let mut index_of = vec![None; tree.inodes.len()];
    let mut pending = vec![(Tree::ROOT, Tree::ROOT)];
    while let Some((id, parent)) = pending.pop() {
        if let Some(index) = index_of[id.0] {
            let again: &mut Placed = &mut inodes[index];
            again.links += 1;
            continue;
        }
        index_of[id.0] = Some(inodes.len());
        let children: Vec<_> = tree.children(id).map(|(_, child)| child).collect();
        let is_directory = |id: &&InodeId| matches!(tree.inode(**id).kind, Kind::Directory(_));
        let below = u32::try_from(children.iter().filter(is_directory).count());
        let links = match tree.inode(id).kind {
            // Its name, its own `.`, and the `..` of each directory in it.
            Kind::Directory(_) => below.expect("a tree has at most 2³² inodes") + 2,
            Kind::Leaf(_) => 1,
        };
        inodes.push(Placed {
            id,
            parent,
            links,
            bytes: 0,
            xattr_bytes: 0,
            shape: Shape::Elsewhere,
            nid: 0,
            first_block: 0,
        });
        pending.extend(children.into_iter().rev().map(|child| (child, id)));
    }
    inodes
}

/// Indexes of the blobs that files of the image lie in, lowest first, each layer once.
fn used_blobs(tree: &Tree, inodes: &[Placed]) -> Vec<usize> {
    let mut is_used = vec![false; tree.blobs.len()];
    for inode in inodes.iter().map(|placed| tree.inode(placed.id)) {
        if let Kind::Leaf(Leaf::File(file)) = &inode.kind
            && file.bytes > 0
        {
            is_used[inode.layer] = true;
        }
    }
    let mut seen = BTreeSet::new();
    let blobs = tree.blobs.iter().enumerate();
    let used = blobs.filter(|(index, blob)| is_used[*index] && seen.insert(blob.diff_id));
    used.map(|(index, _)| index).collect()
}

/// Fills in length, attributes' length and shape.
fn measure(tree: &Tree, form: Form, shared: &Shared<'_>, placed: &mut Placed) {
    let inode = tree.inode(placed.id);
    placed.xattr_bytes = shared.bytes_of(&inode.attributes.xattrs);
    let in_image = match &inode.kind {
        Kind::Directory(_) => Some(Entries::of(tree, placed.id, placed.parent).bytes()),
        Kind::Leaf(Leaf::Symlink(target)) => Some(target.len()),
        Kind::Leaf(Leaf::File(file)) => {
            placed.bytes = file.bytes;
            if form == Form::Devices && file.data != DataBlocks::All {
                placed.shape = chunks(file);
            }
            None
        }
        Kind::Leaf(_) => None,
    };
    let Some(bytes) = in_image else { return };
    placed.bytes = u64::try_from(bytes).expect("a length fits 64 bits");
    let tail = bytes % BLOCK;
    let around = header_bytes(&inode.attributes, placed.bytes, placed.links) + placed.xattr_bytes;
    // Inode, attributes and tail must lie in one block (Linux refuses a tail that crosses).
    placed.shape = if tail > 0 && around + tail <= BLOCK {
        Shape::Inline
    } else {
        Shape::Blocks
    };
}

/// Gives the inode its slot, and its blocks.
fn place(tree: &Tree, placed: &mut Placed, slots: &mut usize, blocks: &mut u32) -> Result<()> {
    let inode = tree.inode(placed.id);
    let mut bytes =
        header_bytes(&inode.attributes, placed.bytes, placed.links) + placed.xattr_bytes;
    let length = usize::try_from(placed.bytes).unwrap_or(usize::MAX);
    let mut whole_blocks = 0;
    match placed.shape {
        Shape::Elsewhere => {}
        Shape::Chunks { count, .. } => bytes += 4 * usize::try_from(count).expect("at most 4096"),
        Shape::Blocks => whole_blocks = length.div_ceil(BLOCK),
        Shape::Inline => {
            bytes += length % BLOCK;
            whole_blocks = length / BLOCK;
            if *slots % BLOCK + bytes > BLOCK {
                *slots = slots.next_multiple_of(BLOCK);
            }
        }
    }
    placed.nid = u64::try_from(*slots / SLOT).expect("a length fits 64 bits");
    *slots += bytes.next_multiple_of(SLOT);
    placed.first_block = *blocks;
    let next = u32::try_from(whole_blocks)
        .ok()
        .and_then(|count| blocks.checked_add(count));
    *blocks = next.ok_or_else(|| too_large("a disk with more than 16 TiB of names"))?;
    Ok(())
}

/// Blocks of a file, holes included.
fn blocks(file: &File) -> u32 {
    let blocks = file.bytes.div_ceil(crate::BLOCK_BYTES);
    u32::try_from(blocks).expect("its blob has at most 2³² blocks")
}

/// The shortest chunks of which a file does not have too many.
fn chunks(file: &File) -> Shape {
    let blocks = blocks(file);
    let mut bits = 0;
    while blocks.div_ceil(1 << bits) > CHUNKS_MAX {
        bits += 1;
    }
    let count = blocks.div_ceil(1 << bits);
    Shape::Chunks { bits, count }
}

fn too_large(why: &'static str) -> Error {
    Error::Unsupported {
        path: "/".to_owned(),
        why,
    }
}
