//! QEMU: what runs guests here, how it is asked for, and how fast its clock goes.

mod accelerator;
mod arguments;

pub use accelerator::{Accelerator, Facts};
pub use arguments::{AGENT_FD, Arguments, LINK_FD, LINKS_MAX};
