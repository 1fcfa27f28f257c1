//! snapshotter-remote on a host: the suite, images that stock containerd pulls without their layers, and stores
//! that lie or are away.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod faults;
mod host;
mod pulled;
mod suite;
