//! Blobs that are fetched while kernels read them: who reads what is not here waits, and is answered when it is.
//!
//! ```text
//!  reader --read--> EROFS --read--> ROOT/blobs/TABLE/data, watched
//!                                        | event                                fd-holder
//!                                   dispatcher --its pieces are here--> allow    keeps the group and the journal of
//!                                        |                                       events, whatever becomes of this process
//!                                   fetchers --verified, written--> allow
//!                                        +----the deadline is over--> EIO
//! ```
//!
//! Where the kernel cannot tell of reads, or is told not to, blobs are served instead: served.rs.
//!
//! A blob is watched before it is mounted: the kernel decides when a file is opened whether its reads are events. When all of
//! it is here and on the disk, it is watched no more, and this process is in nobody's way.

mod background;
pub(in crate::host) mod connection;
mod events;
mod faults;
pub(in crate::host) mod fuse;
mod holder;
pub(crate) mod opener;
mod prefetch;
mod readers;
mod recordings;
mod requests;
mod served;
mod state;
mod traces;

pub(super) use background::Pace;
pub(super) use faults::{Faults, Means, Options, SLOTS};
pub(super) use holder::program as holder_program;
pub(super) use traces::{MountedDisk, TRACE};
