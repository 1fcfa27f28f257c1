//! Inodes as bytes: compact ones of 32 for what is small and of 1970, extended ones of 64.

use crate::{
    attributes::Attributes,
    tree::{Device, Kind, Leaf},
};

/// Where an inode's contents are (erofs_fs.h, data layouts).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// EROFS_INODE_FLAT_PLAIN, in whole blocks from that address on.
    Blocks(u32),
    /// EROFS_INODE_FLAT_INLINE: whole blocks there, the rest behind the inode.
    Inline(u32),
    /// EROFS_INODE_CHUNK_BASED, an address for each 2ⁿ blocks behind the inode.
    Chunks(u8),
    /// A device number.
    Device(Device),
}

/// An inode's fields.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) kind: &'a Kind,
    pub(super) attributes: &'a Attributes,
    pub(super) bytes: u64,
    pub(super) links: u32,
    /// Bytes of the extended attributes behind it.
    pub(super) xattr_bytes: usize,
    /// A number for stat(2) on systems with 32-bit inode numbers.
    pub(super) ino: u32,
    pub(super) contents: Contents,
}

/// Whether 32 bytes hold it: 16-bit owners and links, 32-bit length, and the image's own time.
pub(super) fn is_compact(attributes: &Attributes, bytes: u64, links: u32) -> bool {
    let is_short = |number: u32| u16::try_from(number).is_ok();
    attributes.mtime == crate::attributes::Timestamp::default()
        && [attributes.uid, attributes.gid, links]
            .into_iter()
            .all(is_short)
        && u32::try_from(bytes).is_ok()
}

/// Bytes of the inode alone.
pub(super) fn header_bytes(attributes: &Attributes, bytes: u64, links: u32) -> usize {
    if is_compact(attributes, bytes, links) {
        32
    } else {
        64
    }
}

impl Fields<'_> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let attributes = self.attributes;
        let compact = is_compact(attributes, self.bytes, self.links);
        let (layout, address) = match self.contents {
            Contents::Blocks(block) => (0, block),
            Contents::Inline(block) => (2, block),
            Contents::Chunks(bits) => (4, u32::from(bits)),
            Contents::Device(device) => (0, encode_device(device)),
        };
        let format: u16 = layout << 1 | u16::from(!compact);
        // The header counts as one word.
        let words = self
            .xattr_bytes
            .checked_sub(12)
            .map_or(0, |bytes| 1 + bytes / 4);
        let words = u16::try_from(words).expect("attributes are limited");
        let mode = type_bits(self.kind) | attributes.mode;
        for half in [format, words, mode] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        if compact {
            let low = |number: u32| u16::try_from(number).expect("is_compact has seen to it");
            let bytes = u32::try_from(self.bytes).expect("is_compact has seen to it");
            out.extend_from_slice(&low(self.links).to_le_bytes());
            for word in [bytes, 0, address, self.ino] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.extend_from_slice(&low(attributes.uid).to_le_bytes());
            out.extend_from_slice(&low(attributes.gid).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            return;
        }
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.bytes.to_le_bytes());
        for word in [address, self.ino, attributes.uid, attributes.gid] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&attributes.mtime.seconds.to_le_bytes());
        out.extend_from_slice(&attributes.mtime.nanoseconds.to_le_bytes());
        out.extend_from_slice(&self.links.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
    }
}

/// S_IFMT of stat(2).
fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Leaf(Leaf::Fifo) => 0o010_000,
        Kind::Leaf(Leaf::CharacterDevice(_)) => 0o020_000,
        Kind::Directory(_) => 0o040_000,
        Kind::Leaf(Leaf::BlockDevice(_)) => 0o060_000,
        Kind::Leaf(Leaf::File(_)) => 0o100_000,
        Kind::Leaf(Leaf::Symlink(_)) => 0o120_000,
    }
}

/// Linux' new_encode_dev().
fn encode_device(device: Device) -> u32 {
    device.minor & 0xff | device.major << 8 | (device.minor & !0xff) << 12
}
