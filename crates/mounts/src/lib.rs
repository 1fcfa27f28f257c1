//! Mounts as values: options, plan, apply under a root, undo.
//!
//! A [`Mount`] says what is mounted where and how; [`apply_host`] mounts it on the host as
//! containerd asks for a container's root, [`apply_under`] under a container's root that nothing
//! in the image can lead out of, [`unmount_tree`] takes all of it away. Nothing here decides
//! which mounts a container gets, and only an overlay on the host that is very long or shows owners
//! mapped starts a thread.

mod apply;
mod context;
mod copy_up;
mod error;
pub mod flags;
mod guard;
mod id_map;
mod kernel;
mod mapped_overlay;
mod mount;
pub mod mountinfo;
#[cfg(test)]
mod namespace;
mod options;
mod overlay;
mod recursive;
mod remount;
mod root_dir;
mod rootfs_options;
mod table;
mod unmount;

pub use apply::{apply_host, apply_tree_under, apply_under, owners_of, tree_of};
pub use error::{Error, OptionError, Result};
pub use mount::{Extension, IdMap, IdRange, Mount, MountOptions, Scope};
pub use root_dir::{Kind, LastLink, Place, RootDir};
pub use rootfs_options::id_ranges;
pub use table::known_options;
pub use unmount::unmount_tree;
