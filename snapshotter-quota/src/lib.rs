//! A snapshotter for containerd: overlayfs with a limit for each container, changed live.
//!
//! [`limit`] reads what was asked for and knows no system call; [`backend`] makes it hold;
//! [`driver`] puts both under the core's service; [`watch`] finds out when a limit is near.
//! [`cli`] is the command, the daemon included.

mod admin;
pub mod backend;
pub mod backends;
pub mod cli;
pub mod config;
pub mod containerd;
pub mod driver;
mod error;
pub mod events;
mod hindrance;
pub mod limit;
pub mod metrics;
pub mod serve;
pub mod watch;
pub mod writables;

pub use error::{Error, Result};
