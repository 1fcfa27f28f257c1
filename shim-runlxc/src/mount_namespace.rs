//! Work in another mount namespace, by a thread that ends with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result};

/// Makes a copy of the host's mounts for one program (Linux 3.8: `/proc/PID/ns/mnt`), with a change
/// that the host never sees; gives it with what `change` gives, which runs in it.
pub(crate) fn changed<T: Send>(change: impl FnOnce() -> Result<T> + Send) -> Result<(OwnedFd, T)> {
    let leave = || -> io::Result<File> {
        const NONE: Option<&str> = None;
        let own = format!("/proc/self/task/{}/ns/mnt", nix::unistd::gettid());
        File::open(&own)?; // Before anything is done: old kernels do not have it.
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
        File::open(own)
    };
    on_a_thread("copy the mount namespace", || {
        let namespace = leave().map_err(Error::io("copy the mount namespace"))?;
        Ok((namespace.into(), change()?))
    })
}

/// What `work` gives, which runs in that mount namespace (setns(2), Linux 3.8).
pub(crate) fn within<T: Send>(
    namespace: impl AsFd + Send,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    within_prepared(namespace, || Ok(()), |()| work())
}

/// As [`within`], with what the same thread has prepared before it enters.
pub(crate) fn within_prepared<P, T: Send>(
    namespace: impl AsFd + Send,
    prepare: impl FnOnce() -> Result<P> + Send,
    work: impl FnOnce(P) -> Result<T> + Send,
) -> Result<T> {
    const STEP: &str = "enter the container's mount namespace";
    on_a_thread(STEP, || {
        let prepared = prepare()?;
        // The root and working directory of the process are not this thread's to change.
        unshare(CloneFlags::CLONE_FS)
            .and_then(|()| setns(namespace, CloneFlags::CLONE_NEWNS))
            .map_err(|errno| Error::io(STEP)(errno.into()))?;
        work(prepared)
    })
}

/// A thread may leave the mount namespace of its process; this one ends with its work.
fn on_a_thread<T: Send>(step: &'static str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let panicked = |_panic| Error::io(step)(io::Error::other("a panic"));
        scope.spawn(work).join().map_err(panicked)?
    })
}
