//! The image: planned, then written from its first byte to its last.

use std::io::{self, BufWriter, Read, Write};

use super::{
    BLOCK,
    directory::{Entries, encode_block},
    inode::Fields,
    plan::{Placed, Plan, Shape},
    superblock::Superblock,
};
use crate::{
    BLOCK_BYTES,
    digest::Digest,
    error::{Error, Result},
    tree::{Blob, Kind, Leaf, Tree},
};

/// How the blobs come to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Each blob is a device of its own, named in a device table: mounted with `device=` for each
    /// (Linux 5.16; files in place of block devices since 6.12). Holes of sparse files are never
    /// read.
    Devices,
    /// Metadata and blobs, one behind the other, are one device: no device table, no chunks, so any
    /// EROFS reads it (Linux 5.4). Holes of sparse files are zeros that are read.
    Flat,
}

/// A tree, planned as an image.
#[derive(Debug)]
pub struct Image<'t> {
    tree: &'t Tree,
    chain_id: Digest,
    form: Form,
    plan: Plan<'t>,
}

impl<'t> Image<'t> {
    /// Plans the image of a tree; `chain_id` is that of its layers and gives it its UUID.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for more than 2³² blocks or 65535 layers.
    pub fn of(tree: &'t Tree, chain_id: Digest, form: Form) -> Result<Self> {
        Ok(Self {
            tree,
            chain_id,
            form,
            plan: Plan::of(tree, form)?,
        })
    }

    /// The blobs it needs, in the order of their devices: those of layers of which a file is left.
    pub fn blobs(&self) -> impl Iterator<Item = Blob> {
        self.plan.devices.iter().map(|&(blob, _)| blob)
    }

    /// Length of the metadata in bytes, where the first blob begins.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        u64::from(self.plan.blocks) * BLOCK_BYTES
    }

    /// Length of metadata and blobs in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.plan.all_blocks) * BLOCK_BYTES
    }

    /// Writes the metadata. In [`Form::Flat`] the blobs must follow, each whole, in the order of
    /// [`Image::blobs`].
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self, out: impl Write) -> Result<()> {
        let out = BufWriter::with_capacity(64 << 10, out);
        self.write_all(&mut Positioned { out, offset: 0 })
            .map_err(Error::Write)
    }

    /// Writes the metadata and, behind it, what `open` gives for each blob: a disk in one piece.
    ///
    /// # Errors
    /// [`Error::Write`], and [`Error::ReadBlob`] for a blob that cannot be read or is too short.
    pub fn write_with_blobs<B: Read>(
        &self,
        mut out: impl Write,
        mut open: impl FnMut(Digest) -> io::Result<B>,
    ) -> Result<()> {
        self.write(&mut out)?;
        for blob in self.blobs() {
            let failed = |source| Error::ReadBlob {
                diff_id: blob.diff_id.to_string(),
                source,
            };
            let bytes = u64::from(blob.blocks) * BLOCK_BYTES;
            let source = open(blob.diff_id).map_err(failed)?;
            let copied = io::copy(&mut source.take(bytes), &mut out).map_err(Error::Write)?;
            if copied < bytes {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }

    fn write_all(&self, out: &mut Positioned<impl Write>) -> io::Result<()> {
        let plan = &self.plan;
        let (blocks, devices) = match self.form {
            Form::Devices => (plan.blocks, &plan.devices[..]),
            Form::Flat => (plan.all_blocks, &[][..]),
        };
        let is_chunked = |placed: &Placed| matches!(placed.shape, Shape::Chunks { .. });
        let superblock = Superblock {
            chain_id: self.chain_id,
            inodes: u64::try_from(plan.inodes.len()).expect("a length fits 64 bits"),
            root_nid: u16::try_from(plan.nid(Tree::ROOT)).expect("the root is the first"),
            blocks,
            shared_block: plan.shared_block,
            inode_block: plan.inode_block,
            has_chunks: plan.inodes.iter().any(is_chunked),
            devices,
        };
        out.put(&superblock.encode())?;
        out.put(plan.shared.bytes())?;
        let mut bytes = Vec::new();
        for (index, placed) in plan.inodes.iter().enumerate() {
            bytes.clear();
            self.encode_inode(index, placed, &mut bytes);
            out.fill_to(u64::from(plan.inode_block) * BLOCK_BYTES + placed.nid * 32)?;
            out.put(&bytes)?;
        }
        out.fill_to(u64::from(plan.directory_block) * BLOCK_BYTES)?;
        for placed in &plan.inodes {
            self.write_blocks(placed, out)?;
        }
        out.fill_to(self.metadata_bytes())?;
        out.out.flush()
    }

    /// An inode with all that lies behind it.
    fn encode_inode(&self, index: usize, placed: &Placed, out: &mut Vec<u8>) {
        let inode = self.tree.inode(placed.id);
        let fields = Fields {
            kind: &inode.kind,
            attributes: &inode.attributes,
            bytes: placed.bytes,
            links: placed.links,
            xattr_bytes: placed.xattr_bytes,
            ino: u32::try_from(index + 1).unwrap_or(u32::MAX),
            contents: self.plan.contents(self.tree, placed),
        };
        fields.encode(out);
        self.plan.shared.encode(&inode.attributes.xattrs, out);
        match (&inode.kind, placed.shape) {
            (Kind::Leaf(Leaf::File(file)), Shape::Chunks { bits, .. }) => {
                for address in self.plan.chunks(inode.layer, file, bits) {
                    out.extend_from_slice(&address.to_le_bytes());
                }
            }
            (Kind::Leaf(Leaf::Symlink(target)), Shape::Inline) => out.extend_from_slice(target),
            (Kind::Directory(_), Shape::Inline) => {
                let entries = Entries::of(self.tree, placed.id, placed.parent);
                let last = entries.blocks().last().expect("`.` is always there");
                encode_block(last, self.tree, |id| self.plan.nid(id), out);
            }
            _ => {}
        }
    }

    /// What of an inode's contents lies in blocks of the image.
    fn write_blocks(&self, placed: &Placed, out: &mut Positioned<impl Write>) -> io::Result<()> {
        let start = u64::from(self.plan.directory_block) + u64::from(placed.first_block);
        match (&self.tree.inode(placed.id).kind, placed.shape) {
            (Kind::Leaf(Leaf::Symlink(target)), Shape::Blocks) => {
                out.fill_to(start * BLOCK_BYTES)?;
                out.put(target)
            }
            (Kind::Directory(_), Shape::Blocks | Shape::Inline) => {
                let entries = Entries::of(self.tree, placed.id, placed.parent);
                let whole = match placed.shape {
                    Shape::Inline => entries.blocks().count() - 1,
                    _ => entries.blocks().count(),
                };
                let mut bytes = Vec::with_capacity(BLOCK);
                for (block, entries) in (start..).zip(entries.blocks().take(whole)) {
                    bytes.clear();
                    encode_block(entries, self.tree, |id| self.plan.nid(id), &mut bytes);
                    out.fill_to(block * BLOCK_BYTES)?;
                    out.put(&bytes)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Knows how much was written, and fills gaps with zeros.
struct Positioned<W> {
    out: W,
    offset: u64,
}

impl<W: Write> Positioned<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.offset += u64::try_from(bytes.len()).expect("a length fits 64 bits");
        Ok(())
    }

    fn fill_to(&mut self, offset: u64) -> io::Result<()> {
        let gap = offset
            .checked_sub(self.offset)
            .expect("the plan goes forward");
        io::copy(&mut io::repeat(0).take(gap), &mut self.out)?;
        self.offset = offset;
        Ok(())
    }
}
