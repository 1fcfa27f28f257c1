//! Containers in virtual machines, for containerd: each container in a QEMU of its own, with the kernel
//! of a distribution and `runv-agent` as its pid 1. All of it blocks; the shim calls it from threads.
//!
//! ```text
//!   runtime ──> specification  what of config.json is for the host, what for the guest
//!      │    ──> pod_config     the config.json of a pod's sandbox that is no container of containerd's
//!      │    ──> rootfs         the container's root as an EROFS disk, made once for each image
//!      │    ──> volumes        what of the host goes along
//!      │    ──> links          those of its network namespace, tied to the machine
//!      │    ──> machine        QEMU in the container's cgroup, journalled before it starts
//!      │    ──> agent          calls to the guest over the mux
//!      └──────> streams        stdio between shim-core's descriptors and the mux
//! ```

mod error;

pub mod home;
pub mod image;
pub mod qemu;

mod agent;
mod contained;
mod exec;
mod held;
mod journal;
mod links;
mod listed;
mod machine;
mod oom;
mod pod;
mod pod_config;
mod root;
mod rootfs;
mod sharing;
mod size;
mod specification;
mod stage;
mod streams;
pub mod template;
mod virtiofsd;
mod volumes;

pub mod cli;
pub mod runtime;
mod status;

pub use error::{Error, Result};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit it was built from (`build.rs`), or empty.
pub const REVISION: &str = match option_env!("POUCH_REVISION") {
    Some(revision) => revision,
    None => "",
};
