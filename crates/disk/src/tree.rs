//! The tree that layers add up to: inodes in one arena, names in sorted maps.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    attributes::Attributes,
    digest::Digest,
    path::{Name, Path},
};

/// Index of an inode in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(crate) usize);

/// All layers up to one, merged: what a container sees.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The root is the first. Those that a later layer removed stay, unreachable.
    pub(crate) inodes: Vec<Inode>,
    /// One for each layer that was applied, lowest first.
    pub(crate) blobs: Vec<Blob>,
}

/// The contents of one layer's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// The layer.
    pub diff_id: Digest,
    /// Length in blocks of [`crate::BLOCK_BYTES`].
    pub blocks: u32,
}

/// A file of any type, which may have several names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Mode, owner, time, extended attributes.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind,
    /// Which of [`Tree::blobs`] has its contents: the layer that it came with.
    pub layer: usize,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory(BTreeMap<Name, InodeId>),
    /// Anything that has nothing below it.
    Leaf(Leaf),
}

/// Anything but a directory. Tars know no sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// A regular file.
    File(File),
    /// A symbolic link and where it points: 1 to 4095 bytes.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// A regular file: where in its layer's blob it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Length in bytes.
    pub bytes: u64,
    /// Where it begins in the blob, in blocks; its contents are contiguous, holes included.
    pub first_block: u32,
    /// What of it is data.
    pub data: DataBlocks,
}

/// Which blocks of a file have data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataBlocks {
    /// All of them.
    All,
    /// Those of these ranges, counted from the file's beginning, ascending and apart; the rest is
    /// holes.
    Ranges(Box<[Range<u32>]>),
}

/// A device number as Linux has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Below 2¹².
    pub major: u32,
    /// Below 2²⁰.
    pub minor: u32,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// An empty one: a root directory of mode 0755 that belongs to root.
    #[must_use]
    pub fn new() -> Self {
        let root = Inode {
            attributes: Attributes::IMPLICIT,
            kind: Kind::Directory(BTreeMap::new()),
            layer: 0,
        };
        Self {
            inodes: vec![root],
            blobs: Vec::new(),
        }
    }

    /// The root directory.
    pub const ROOT: InodeId = InodeId(0);

    /// An inode of this tree.
    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0]
    }

    /// One for each layer that was applied, lowest first.
    #[must_use]
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// What a directory has; nothing for what is none.
    pub fn children(&self, id: InodeId) -> impl Iterator<Item = (&Name, InodeId)> {
        let entries = match &self.inode(id).kind {
            Kind::Directory(entries) => Some(entries),
            Kind::Leaf(_) => None,
        };
        let entries = entries.into_iter().flatten();
        entries.map(|(name, &child)| (name, child))
    }

    /// What is at a path; symbolic links are not followed.
    #[must_use]
    pub fn lookup(&self, path: &Path) -> Option<InodeId> {
        path.parts()
            .try_fold(Self::ROOT, |id, part| match &self.inode(id).kind {
                Kind::Directory(entries) => entries.get(part).copied(),
                Kind::Leaf(_) => None,
            })
    }
}
