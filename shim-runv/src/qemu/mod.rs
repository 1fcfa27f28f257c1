//! QEMU: what runs guests here, how it is asked for, and how fast its clock goes.

mod accelerator;
mod arguments;
mod monitor;

pub use accelerator::{Accelerator, Facts};
pub use arguments::{AGENT_FD, Arguments, LINK_FD, LINKS_MAX, MONITOR_FD, SCSI, Slots};
pub(crate) use monitor::Monitor;
