//! A FUSE connection becomes a mount that is nowhere in the tree of mounts.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use sys::{FsContext, FuseDevice, mount_api};

/// Mounts it, read-only, for root alone; it goes when nobody has this, or a file of it, open. Nobody need answer for that.
///
/// # Errors
/// What mount(2) says: ENODEV on a kernel without FUSE, ENOSYS before 5.2.
pub(in crate::host) fn mount(device: &FuseDevice) -> io::Result<OwnedFd> {
    let context = FsContext::open(c"fuse")?;
    let number = device.as_fd().as_raw_fd();
    let number = CString::new(number.to_string()).expect("digits");
    context.set(c"source", c"snapshotter-remote")?;
    context.set(c"fd", &number)?;
    for (key, value) in [
        (c"rootmode", c"40000"),
        (c"user_id", c"0"),
        (c"group_id", c"0"),
    ] {
        context.set(key, value)?;
    }
    context.set_flag(c"ro")?;
    let attributes =
        mount_api::MOUNT_ATTR_RDONLY | mount_api::MOUNT_ATTR_NOSUID | mount_api::MOUNT_ATTR_NODEV;
    context.mount(u32::try_from(attributes).expect("all are low bits"))
}
