//! What of systemd a container's cgroup needs: a transient scope made, changed and ended.
//!
//! Its interface is org.freedesktop.systemd1(5), by messages of D-Bus over one blocking socket.

mod annotations;
mod bus;
mod message;
mod units;

pub(crate) use annotations::{PREFIX, properties};
pub(crate) use units::{Manager, Unit};
