//! Images as read-only disks that hosts share. The crate `disk` makes a disk of an image's layers; here
//! is how it is cut, named, signed and kept, and how it is read so that no byte is used that was not
//! verified.
//!
//! ```text
//!  manifest of a chain id --signed--> table of its metadata -------> chunks
//!                                \--> digests of its blobs' tables -> chunks
//! ```
//!
//! [`store`] is where disks are kept, [`serve`] gives them to hosts, [`host`] is the daemon there, [`pull`] brings images
//! to its containerd.
//! docs/remote.md draws them and gives the reasons.

pub mod chunk;
pub mod cli;
mod conversion;
pub mod cut;
mod driver;
mod error;
mod fields;
pub mod host;
pub mod image;
pub mod manifest;
pub mod nbd;
mod open_files;
pub mod pull;
pub mod serve;
pub mod signature;
pub mod store;
pub mod table;
mod tls;
pub mod trace;

pub use error::{Error, Result};
