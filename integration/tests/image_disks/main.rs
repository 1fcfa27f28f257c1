//! Disks of images as others see them: the kernel's own EROFS here and in guests, fsck.erofs, and a plain
//! unpack by stock containerd, entry by entry.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod converted;
mod expected;
mod exported;
mod guests;
mod kernel;
mod mounted;
mod pulled;
mod random;
mod served;
mod stock;
mod store;
mod tars;
