//! snapshotter-remote on a host: the suite, disks that are fetched while they are read, images that stock containerd pulls without their layers, and stores
//! that lie or are away.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]
#![expect(clippy::print_stdout, reason = "figures are shown with --nocapture")]

mod bucket;
mod care;
mod converted;
mod eviction;
mod faults;
mod host;
mod kills;
mod lazy;
mod pull;
mod pulled;
mod suite;
mod traces;
mod truth;
