//! Directories: blocks of entries in the order of names, each block with its own names behind them.

use super::BLOCK;
use crate::tree::{Inode, InodeId, Kind, Leaf, Tree};

/// Bytes of an entry beside its name.
const ENTRY_BYTES: usize = 12;

/// A directory's entries, `.` and `..` among them, sorted as EROFS looks them up: byte by byte.
#[derive(Debug)]
pub(super) struct Entries<'t> {
    all: Vec<(&'t [u8], InodeId)>,
}

impl<'t> Entries<'t> {
    pub(super) fn of(tree: &'t Tree, id: InodeId, parent: InodeId) -> Self {
        let mut all: Vec<(&[u8], InodeId)> = vec![(b".", id), (b"..", parent)];
        all.extend(tree.children(id).map(|(name, child)| (&**name, child)));
        all.sort_unstable();
        Self { all }
    }

    /// Entries of each block: as many as fit.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &[(&'t [u8], InodeId)]> {
        let mut rest = &self.all[..];
        std::iter::from_fn(move || {
            let mut bytes = 0;
            let fitting = rest.iter().take_while(|(name, _)| {
                bytes += ENTRY_BYTES + name.len();
                bytes <= BLOCK
            });
            let (block, later) = rest.split_at(fitting.count());
            rest = later;
            (!block.is_empty()).then_some(block)
        })
    }

    /// Length of the directory: whole blocks, and what the last one uses.
    pub(super) fn bytes(&self) -> usize {
        let (count, last) = self
            .blocks()
            .fold((0, 0), |(count, _), block| (count + 1, used_bytes(block)));
        (count - 1) * BLOCK + last
    }
}

fn used_bytes(block: &[(&[u8], InodeId)]) -> usize {
    block.iter().map(|(name, _)| ENTRY_BYTES + name.len()).sum()
}

/// One block, without the zeros that fill it up.
pub(super) fn encode_block(
    block: &[(&[u8], InodeId)],
    tree: &Tree,
    nid: impl Fn(InodeId) -> u64,
    out: &mut Vec<u8>,
) {
    let mut name_offset = block.len() * ENTRY_BYTES;
    for (name, id) in block {
        let offset = u16::try_from(name_offset).expect("names lie within the block");
        out.extend_from_slice(&nid(*id).to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&[file_type(tree.inode(*id)), 0]);
        name_offset += name.len();
    }
    for (name, _) in block {
        out.extend_from_slice(name);
    }
}

/// EROFS_FT_*, which are Linux' FT_*.
fn file_type(inode: &Inode) -> u8 {
    match &inode.kind {
        Kind::Leaf(Leaf::File(_)) => 1,
        Kind::Directory(_) => 2,
        Kind::Leaf(Leaf::CharacterDevice(_)) => 3,
        Kind::Leaf(Leaf::BlockDevice(_)) => 4,
        Kind::Leaf(Leaf::Fifo) => 5,
        Kind::Leaf(Leaf::Symlink(_)) => 7,
    }
}
