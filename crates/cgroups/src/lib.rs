//! Control groups of version 1 and 2 as directories under a root.
//!
//! [`Hierarchies`] tells what the host has, [`CgroupPaths`] where a container's directories lie,
//! [`Cgroup`] makes them, limits them, moves processes in, and takes them away. Every function
//! works on directories it is given, so that all of it runs on temporary ones in tests.

mod error;

pub mod hierarchies;
pub mod paths;
pub mod scope;

pub mod properties;
pub mod resources;
pub mod stats;

pub mod cgroup;
pub mod colocation;
pub mod kept;
mod kill;
pub mod oom;
pub mod priority;
mod procs;
mod remove;
pub mod resctrl;

mod convert;
mod devices;
mod devices_bpf;
mod rdma;
mod v1;
mod v2;

mod file;
mod wait;

pub use cgroup::Cgroup;
pub use colocation::Setting;
pub use error::{Error, Result};
pub use hierarchies::{Controller, Hierarchies, Kind, Layout};
pub use oom::{OomNews, OomWatch};
pub use paths::{CgroupDir, CgroupPaths};
pub use priority::{Applied, Priority};
pub use properties::Property;
pub use resources::Resources;
pub use scope::ScopeName;
pub use stats::Stats;
