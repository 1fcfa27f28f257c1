//! The command `runlxc` on real containers; needs root, LXC, busybox and a built runlxc-init.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

mod checkpoint;
mod crashes;
mod exec;
mod fake_criu;
mod full_disk;
mod harness;
mod hooks;
mod lifecycle;
mod namespaces;
mod net_devices;
mod priority;
mod refusals;
mod rich;
mod rich_hooks;
mod running;
mod scheduling;
mod systemd;
mod terminal;
