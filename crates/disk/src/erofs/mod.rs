//! A tree as an EROFS image, uncompressed. What the bytes mean is in Linux' fs/erofs/erofs_fs.h and
//! Documentation/filesystems/erofs.rst; why they are chosen so is in docs/remote.md.
//!
//! ```text
//!  block 0   superblock at 1024, device table behind it     plan, superblock
//!            shared extended attributes                     shared
//!            inodes, each with its attributes and, where    inode
//!            they fit, directory entries or link target
//!            directories and targets that did not fit       directory
//!  --------- end of the metadata image -------------------
//!            blob of the first device, of the second, ...   addresses go on without a gap
//! ```

mod checksum;
mod directory;
mod image;
mod inode;
mod plan;
mod shared;
mod superblock;

pub use image::{Form, Image};

/// Bytes of a block as a length in memory.
const BLOCK: usize = 4096;

/// Bytes of the slots that inodes lie in; an inode's number is that of its slot.
const SLOT: usize = 32;
