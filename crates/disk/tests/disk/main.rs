//! Layers in, trees, blobs and images out: behaviour at the crate's door. What the kernel, fsck.erofs
//! and stock containerd make of the images is asked in integration/tests/image_disks.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod accepted;
mod arbitrary;
mod merged;
mod model;
mod refused;
mod stored;
mod tarball;
mod written;
