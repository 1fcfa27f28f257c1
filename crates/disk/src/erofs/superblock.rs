//! Block 0: the superblock and the beginning of the device table.

use super::{BLOCK, checksum::crc32c};
use crate::{digest::Digest, tree::Blob};

const MAGIC: u32 = 0xe0f5_e1e2;
/// Where the superblock is.
const OFFSET: usize = 1024;
const SUPERBLOCK_BYTES: usize = 128;
/// Bytes of a slot of the device table, and the first slot behind the superblock.
const DEVICE_BYTES: usize = 128;
const FIRST_DEVICE_SLOT: u16 = 9;

/// EROFS_FEATURE_COMPAT_SB_CHKSUM and _MTIME: a checksum, and times are those of modification.
const FEATURE_COMPAT: u32 = 0x1 | 0x2;
/// Linux 5.15.
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// Linux 5.16.
const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Superblock<'a> {
    pub(super) chain_id: Digest,
    pub(super) inodes: u64,
    /// Slot of the root directory, counted from the first inode.
    pub(super) root_nid: u16,
    /// Blocks of the device that the image is on.
    pub(super) blocks: u32,
    /// First block of the shared attributes and of inodes.
    pub(super) shared_block: u32,
    pub(super) inode_block: u32,
    pub(super) has_chunks: bool,
    /// Further devices and the blocks where they begin.
    pub(super) devices: &'a [(Blob, u32)],
}

/// How many blocks superblock and table take.
pub(super) fn blocks(devices: usize) -> u32 {
    let bytes = usize::from(FIRST_DEVICE_SLOT) * DEVICE_BYTES + devices * DEVICE_BYTES;
    u32::try_from(bytes.div_ceil(BLOCK)).expect("a table has at most 65535 devices")
}

impl Superblock<'_> {
    /// Superblock and device table, whole blocks.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; OFFSET];
        self.encode_superblock(&mut out);
        for (blob, first_block) in self.devices {
            // 64 bytes for a name: just the hexadecimal digits of a SHA-256.
            out.extend_from_slice(blob.diff_id.to_string().as_bytes());
            out.extend_from_slice(&blob.blocks.to_le_bytes());
            out.extend_from_slice(&first_block.to_le_bytes());
            out.extend_from_slice(&[0; 56]);
        }
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        let sum = crc32c(&out[OFFSET..BLOCK]);
        out[OFFSET + 4..OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn encode_superblock(&self, out: &mut Vec<u8>) {
        let mut incompat = 0;
        if self.has_chunks {
            incompat |= INCOMPAT_CHUNKED_FILE;
        }
        if !self.devices.is_empty() {
            incompat |= INCOMPAT_DEVICE_TABLE;
        }
        let devices = u16::try_from(self.devices.len()).expect("the plan has counted them");
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        put(&MAGIC.to_le_bytes());
        put(&[0; 4]); // The checksum, later.
        put(&FEATURE_COMPAT.to_le_bytes());
        put(&[12, 0]); // Blocks of 2¹² bytes, no further parts of the superblock.
        put(&self.root_nid.to_le_bytes());
        put(&self.inodes.to_le_bytes());
        put(&[0; 12]); // Time of the image: 1970, what compact inodes have.
        put(&self.blocks.to_le_bytes());
        put(&self.inode_block.to_le_bytes());
        put(&self.shared_block.to_le_bytes());
        put(&self.uuid());
        put(&[0; 16]); // No name.
        put(&incompat.to_le_bytes());
        put(&[0; 2]); // No compression.
        put(&devices.to_le_bytes());
        put(&FIRST_DEVICE_SLOT.to_le_bytes());
        out.resize(OFFSET + SUPERBLOCK_BYTES, 0);
    }

    /// The first half of the chainID, marked as a UUID of one's own making (RFC 9562, version 8).
    fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.chain_id.0[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}
