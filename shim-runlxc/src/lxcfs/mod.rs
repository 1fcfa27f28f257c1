//! A container's view of its own limits: files of the host's lxcfs over those of the kernel.
//!
//! ```text
//!   lxcfs, a FUSE on the host            the container
//!   ROOT/proc/meminfo, ... ------bind--> /proc/meminfo, ...
//!   ROOT/sys/devices/system/cpu -------> /sys/devices/system/cpu
//! ```
//! When lxcfs is killed its mounts stay and are dead. Whoever starts it again mounts it anew, which
//! the kernel tells the one thread that watches for it in a shim (`watch`), and each container is
//! given what is there now (`renew`).

mod bind;
mod renew;
mod source;
mod watch;

pub use bind::View;
pub(crate) use bind::bind;
pub(crate) use renew::renew;
pub use source::{Lxcfs, ROOT};
pub use watch::Watch;
