//! A copy of the host's mounts for one program, with a change that the host never sees.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{Error, Result};

/// Makes it (Linux 3.8: `/proc/PID/ns/mnt`); gives it with what `change` gives, which runs in it.
pub(crate) fn changed<T: Send>(change: impl FnOnce() -> Result<T> + Send) -> Result<(OwnedFd, T)> {
    let failed = || Error::io("copy the mount namespace");
    let leave = || -> io::Result<File> {
        const NONE: Option<&str> = None;
        let own = format!("/proc/self/task/{}/ns/mnt", nix::unistd::gettid());
        File::open(&own)?; // Before anything is done: old kernels do not have it.
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
        File::open(own)
    };
    // A thread may leave the mount namespace of its process; it ends here and now.
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            let namespace = leave().map_err(failed())?;
            Ok((namespace.into(), change()?))
        });
        let panicked = |_panic| failed()(io::Error::other("a panic"));
        made.join().map_err(panicked)?
    })
}
