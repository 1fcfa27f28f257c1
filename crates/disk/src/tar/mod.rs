//! The syntax of tars: ustar, GNU and PAX as people's tools write them, read as a stream. It knows
//! nothing of layers and keeps no data.
//!
//! Written here and not taken from a library: the `tar` crate reads long names and PAX records
//! of any length into memory, knows no PAX sparse files and no global headers, and passes over
//! records that it does not understand. Every tar of an image is somebody else's, and what comes out
//! must be the same for ever.
//! Sources: POSIX.1-2017 pax ("pax Interchange Format"), GNU tar's manual ("Tar Internals").

mod archive;
mod header;
mod pax;
mod sparse;

pub(crate) use archive::{Archive, Member, MemberKind};
pub(crate) use sparse::SparseMap;
