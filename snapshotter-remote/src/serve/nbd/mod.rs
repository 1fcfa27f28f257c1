//! The store's disks as NBD exports, for hosts that have an NBD client and nothing of ours: the flat form, read-only, its name
//! `sha256:CHAINID`. Who may connect may read every disk, so hosts are known by certificates or not at all: the protocol has no
//! place for a token.
//!
//! ```text
//!  bytes --> nbd::Session --Event--> Conversation --Find--> Exports --> store::FlatDisk
//!                                         \-------Read---> chunks: of the cache, or read and verified
//! ```

mod cache;
mod config;
mod conversation;
mod exports;

pub use config::NbdConfig;
pub(super) use conversation::serve;
pub(super) use exports::Exports;
