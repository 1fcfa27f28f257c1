//! How a limit is made to hold, on whatever file system there is.
//!
//! A [`Backend`] fills a snapshot's directory, limits and measures it, and gives back what outlives
//! it. [`Record`] is what it keeps with the snapshot: where the writable directory is follows from
//! that alone, so snapshots of different back ends can stand on each other. Nothing here reads
//! labels or talks to containerd.

mod btrfs;
mod contract;
mod directories;
mod disk_usage;
mod escape;
mod filesystem_maker;
mod groups;
mod growth;
mod image;
mod image_size;
mod lost_writes;
mod mounted;
mod plain;
mod pool;
mod prjquota;
mod probe;
mod project_range;
mod record;
mod separate;
mod sparse_copy;
mod template;
mod tmpfs;
mod tree_copy;
mod volumes;

pub use btrfs::Btrfs;
pub use contract::{
    Abilities, Audit, Backend, Charge, Closed, Counting, Device, Full, Held, Kept, Kind, Left,
    Report, Resize, Stray, Support,
};
pub use image::{Image, ImageOptions};
pub use plain::Plain;
pub use pool::{Pool, PoolOptions};
pub use prjquota::Prjquota;
pub use probe::{AUTOMATIC, Options, probe};
pub use project_range::ProjectRange;
pub use record::{Fs, Record, SharedQgroup};
pub use tmpfs::Tmpfs;
pub use volumes::{LimitedVolume, Volume, limit_volumes, volume_projects};
