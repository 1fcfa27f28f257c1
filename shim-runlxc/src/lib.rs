//! Containers by LXC, for containerd and on the command line.
//!
//! LXC makes namespaces and id maps; everything else is done here on the host side, and by the
//! stub `runlxc-init` inside. All of it blocks; the shim calls it from threads of its own.

mod error;

mod answer;
mod bounded;
pub mod id;
mod mount_namespace;
mod on_path;
pub mod process;
mod wait;

pub mod host;
pub mod lxc;
pub mod lxc_config;
pub mod stub;

pub mod lxcfs;

pub mod journal;
mod listener;
mod locks;
mod shared_mounts;
pub mod state_dir;

mod agent;
mod bring_up;
mod channel;
mod checkpoint;
pub mod components;
mod connect;
pub mod container;
pub mod create;
mod criu;
pub mod delete;
pub mod exec;
mod external;
mod hook_output;
pub mod host_scripts;
mod image;
mod inherited;
mod joined;
mod kill;
mod membership;
pub mod out_of_memory;
mod priority;
mod progress;
mod readiness;
mod resctrl;
mod restore;
mod rich_hooks;
pub mod scope;
mod start;
mod systemd;
mod traffic;
mod update;

pub mod cli;
pub mod features;
mod furnish;
pub mod runtime;
mod status;

pub use container::Container;
pub use error::{Error, Result, SystemdFailure};
pub use id::ContainerId;
pub use joined::Joined;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit it was built from (`build.rs`), or empty.
pub const REVISION: &str = match option_env!("POUCH_REVISION") {
    Some(revision) => revision,
    None => "",
};
