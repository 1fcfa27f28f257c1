//! What every proxy snapshotter of containerd needs; a snapshotter adds one [`Driver`].
//!
//! A snapshot is a directory `snapshots/ID` and a record in the store. The core names them, keeps
//! both in step through any crash, answers containerd's service and runs the daemon around it; the
//! driver fills the directory, says how it is mounted, and what it holds. Nothing here knows of
//! quotas or of remote images. `examples/plain_snapshotter.rs` is all of a snapshotter.

mod blocking;
mod contents;
mod convert;
pub mod daemon;
mod directories;
mod driver;
mod error;
mod filter;
mod id_map;
mod labels;
mod listing;
mod locks;
pub mod metrics;
mod newest;
pub mod overlay;
mod overlay_probe;
mod plain;
mod ready_made;
mod rebuild;
mod service;
mod snapshot;
mod snapshots;
mod status;
mod store;
mod sweeper;
mod threads;
mod tree;

pub use contents::make_contents;
pub use directories::Root;
pub use driver::{Chain, Committed, Driver, Mount, NewSnapshot, Remains};
pub use error::{Error, Result, one_line};
pub use filter::Filter;
pub use id_map::IdMap;
pub use labels::{Field, LABEL_BYTES_MAX, LABELS_MAX};
pub use listing::Listing;
pub use locks::Names;
pub use newest::newest_notes;
pub use overlay::{OverlayOptions, Owners};
pub use overlay_probe::{
    OverlaySupport, probe as probe_overlay, probe_in_memory as probe_overlay_in_memory,
};
pub use plain::PlainDriver;
pub use ready_made::TARGET_LABEL;
pub use rebuild::{Rebuilt, rebuild};
pub use service::{Server, Service};
pub use snapshot::{Info, Key, Kind, Labels, Note, Snapshot, SnapshotId, Timestamp, Usage};
pub use snapshots::{CommitRequest, Snapshots};
pub use status::status;
pub use threads::{Limits, Threads};
pub use tree::{delete_all as delete_tree, usage as disk_usage};
