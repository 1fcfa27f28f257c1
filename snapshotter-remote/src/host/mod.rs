//! The daemon on a host: containerd's snapshots, of which those that a store has are disks instead of
//! unpacked layers.
//!
//! ```text
//!  containerd --Prepare, chainID--> Driver::ready_made --manifest, verified--> committed snapshot
//!             --Prepare, parent---> Driver::mounts ----> Disks::attach
//!                                     metadata whole, blobs as far as the back end wants them
//!                                     EROFS at snapshots/ID/fs, the one lower directory of overlays
//! ```
//!
//! Nothing becomes readable that was not verified: a manifest by a key that the operator trusts, all else by
//! digests from there.

mod attach;
mod blob;
mod client;
mod config;
mod conversion;
pub(crate) mod detach;
mod disks;
mod doctor;
mod driver;
mod eviction;
mod fetcher;
mod files;
mod lazy;
mod metrics;
mod mounted;
mod opens;
mod operator;
mod pins;
mod probe;
mod proxy;
mod received;
mod room;
mod serve;
mod status;
mod tls;
mod unwatched;
mod uses;

pub use attach::{Kind, Rejected};
pub use client::Client;
pub use config::{Config, FILE};
pub use doctor::{Finding, Severity, doctor};
pub use driver::RemoteDriver;
pub(crate) use lazy::opener;
pub use pins::{pin, unpin};
pub use serve::{Reread, serve};
pub use status::{DiskStatus, HostStatus, status};
