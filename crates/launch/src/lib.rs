//! What happens between clone and execve of a container's process.
//!
//! The host side validates a bundle once into a closed [`plan::InitPlan`] or [`plan::ExecPlan`]
//! and sends it over a socket ([`control`]); a process that already stands in the container's
//! namespaces applies it. Nothing here reads config.json, and nothing here starts threads.

mod agent;
mod cgroups;
pub mod control;
mod devices;
mod environment;
mod error;
pub mod exec;
mod executable;
mod filesystems;
mod given;
pub mod hooks;
mod host_side;
pub mod image_init;
pub mod init;
mod labels;
pub mod listening;
mod masks;
pub mod plan;
mod process;
mod procfs;
mod reaper;
mod restarts;
mod rootfs;
mod scheduling;
mod services;
pub mod signals;
mod start;
mod terminal;
pub mod view;

pub use error::{Error, Result};
pub use procfs::sysctl_path;
pub use services::says_ready;
