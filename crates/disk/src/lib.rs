//! Layers of an OCI image as one read-only EROFS disk. It reads tars and writes blobs and images;
//! it opens no file, mounts nothing and asks nobody.
//!
//! ```text
//!  tar of a layer --Layer::read--> blob (contents, 4 KiB aligned)      once for each layer
//!                       |
//!                     Layer (names, attributes, whiteouts) <--encode, decode--> bytes
//!                       |
//!             Tree::apply, lowest first (image-spec, "Applying Changesets")
//!                       |
//!                 Image::write --> metadata image with a device table  once for each chain id
//!                 Image::write_with_blobs --> metadata and blobs in one file
//! ```
//!
//! The same layers give the same bytes everywhere: nothing depends on time, on the machine, on the
//! order of a hash table or on threads. docs/remote.md draws the format and gives its reasons.

mod attributes;
mod blob;
mod digest;
mod erofs;
mod error;
mod layer;
mod limits;
mod merge;
mod path;
mod read;
mod stored;
mod tar;
mod tree;
mod xattr;

pub use attributes::{Attributes, Timestamp, Xattrs};
pub use digest::Digest;
pub use erofs::{Form, Image};
pub use error::{Error, Result};
pub use layer::Layer;
pub use limits::Limits;
pub use path::{Name, Path};
pub use tree::{Blob, DataBlocks, Device, File, Inode, InodeId, Kind, Leaf, Tree};

/// Bytes of a block: the unit of addresses on the disk. Before Linux 6.4 EROFS takes no other than
/// the page size.
pub const BLOCK_BYTES: u64 = 4096;

/// Version of what this crate makes of a tar: blobs and images of different versions do not mix.
/// It is raised whenever the bytes change.
pub const FORMAT_VERSION: u32 = 1;
