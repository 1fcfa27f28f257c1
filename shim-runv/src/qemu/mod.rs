//! QEMU: what runs guests here, how it is asked for, and how fast its clock goes.

mod accelerator;
mod arguments;
mod monitor;
mod process;

pub use accelerator::{Accelerator, Access, Facts};
pub use arguments::{
    AGENT_FD, Arguments, CONSOLE_FD, CONSOLE_SET, INITRAMFS_FD, KERNEL_FD, LINK_FD, LINKS_MAX,
    MEMORY_FD, MONITOR_FD, Memory, SCSI, VOLUMES_FD, Volumes,
};
pub(crate) use monitor::Monitor;
pub(crate) use process::{Files, PROGRAM, Qemu, Wires, find, lines, not_up, one_line};
