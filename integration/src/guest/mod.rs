//! Guests: a Debian kernel under QEMU/TCG with a Debian root and our binaries, cgroup v2 only.
//!
//! A guest runs one program, passes on what it prints, and ends with its exit code. Nothing is
//! shared with the host but what was copied in before the start.

mod boot;
mod initramfs;
mod kernel;
mod named_test;
mod root;

pub use boot::{Guest, Outcome};
pub use kernel::{Kernel, Series};
pub use named_test::{NamedTest, Wanted};
pub use root::{WITH_SYSTEMD, systemds};
