//! Mounts that nobody else sees and that end with the test.

use std::{
    ffi::CString,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use sys::{FsContext, LoopAccess, LoopDevice, mount_api::move_mount};

/// Runs `look` with an EROFS mounted read-only, in a mount namespace of its own that ends with it.
pub(crate) fn with_erofs<T: Send>(
    image: &Path,
    devices: &[PathBuf],
    look: impl FnOnce(&Path) -> Result<T> + Send,
) -> Result<T> {
    let work = || {
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
        let point = tempfile::tempdir()?;
        // Loop devices live as long as they are mounted.
        let result = mount_erofs(image, devices, point.path()).and_then(|()| look(point.path()));
        // The directory must go before the namespace does; without a mount there is nothing to undo.
        let unmounted = umount2(point.path(), MntFlags::MNT_DETACH);
        let result = result?;
        unmounted?;
        Ok(result)
    };
    let joined = std::thread::scope(|scope| scope.spawn(work).join());
    joined.map_err(|_panic| anyhow!("the thread with the mount panicked"))?
}

/// Mounts files as they are where the kernel can (6.12), else as loop devices.
fn mount_erofs(image: &Path, devices: &[PathBuf], point: &Path) -> Result<()> {
    match mount_paths(image, devices, point) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOTBLK) => {}
        result => return result.context("mounting EROFS from files"),
    }
    let attach = |path: &Path| LoopDevice::attach(path, LoopAccess::ReadOnly);
    let image = attach(image)?;
    let devices: Vec<LoopDevice> = devices
        .iter()
        .map(|path| attach(path))
        .collect::<Result<_, _>>()?;
    let paths: Vec<PathBuf> = devices
        .iter()
        .map(|device| device.path().to_owned())
        .collect();
    mount_paths(image.path(), &paths, point).context("mounting EROFS from loop devices")
}

fn mount_paths(image: &Path, devices: &[PathBuf], point: &Path) -> std::io::Result<()> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let context = FsContext::open(c"erofs")?;
    context.set(c"source", &text(image)?)?;
    for device in devices {
        context.set(c"device", &text(device)?)?;
    }
    context.set_flag(c"ro")?;
    let mounted = context.mount(0)?;
    move_mount(mounted, File::open(point)?)
}
