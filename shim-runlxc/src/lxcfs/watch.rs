//! Notices that there is another lxcfs, and has the containers of this shim see it.
//!
//! One thread for all of them, and none while no container asks for a view. It waits in poll(2) for
//! a change of the host's mounts; what it then asks first costs one system call, whatever the
//! number of mounts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use super::bind::View;
use super::renew::{Outcome, renew};
use super::source::Mounted;
use crate::process::ProcessId;
use crate::{Error, Result};

/// The watch of one shim; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    containers: Vec<Container>,
    /// Whether the thread is there.
    runs: bool,
}

/// A container with a view.
#[derive(Debug, Clone)]
struct Container {
    id: String,
    init: ProcessId,
    view: View,
}

impl Watch {
    /// From now on the container sees whatever lxcfs there is.
    ///
    /// # Errors
    /// When nobody can watch; what the container sees now is right all the same.
    pub(crate) fn add(&self, id: &str, init: ProcessId, view: &View) -> Result<()> {
        let container = Container {
            id: id.to_owned(),
            init,
            view: view.clone(),
        };
        let mut watched = self.lock();
        watched.containers.push(container.clone());
        if !watched.runs {
            let failed = || Error::io("watch for lxcfs");
            // Opened here, so that no change after this is missed.
            let mounts = File::open("/proc/self/mountinfo").map_err(failed())?;
            let watch = self.clone();
            std::thread::Builder::new()
                .name("lxcfs".to_owned())
                .spawn(move || watch.run(&mounts))
                .map_err(failed())?;
            watched.runs = true;
        }
        drop(watched);
        // It may have been replaced since the container's mounts were made.
        let _told = container.renew();
        Ok(())
    }

    /// The container is gone. The thread ends at the next change of mounts when it was the last.
    pub(crate) fn remove(&self, id: &str) {
        self.lock()
            .containers
            .retain(|container| container.id != id);
    }

    fn run(&self, mounts: &File) {
        let mut seen = BTreeMap::new();
        while let Some(containers) = self.containers() {
            for root in changed(&containers, &mut seen) {
                let mut done = true;
                for container in containers.iter().filter(|c| c.view.root == root) {
                    done &= container.renew();
                }
                if !done {
                    // Tried again at the next change.
                    seen.remove(&root);
                }
            }
            if let Err(error) = wait(mounts) {
                tracing::error!(%error, "nobody watches for lxcfs until the next container");
                self.lock().runs = false;
                return;
            }
        }
    }

    /// Those to look after; none when there is no more work.
    fn containers(&self) -> Option<Vec<Container>> {
        let mut watched = self.lock();
        watched.runs = !watched.containers.is_empty();
        watched.runs.then(|| watched.containers.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    /// False when it did not come to what it should.
    fn renew(&self) -> bool {
        let container = self.id.as_str();
        match renew(self.init, &self.view) {
            Ok(Outcome::Renewed(mounts)) => {
                tracing::info!(container, mounts, "sees the lxcfs that is there now");
                true
            }
            Ok(Outcome::Right) | Err(Error::NotRunning) => true,
            Err(error) => {
                let error = error.chain();
                tracing::warn!(container, error, "cannot be given another lxcfs");
                false
            }
        }
    }
}

/// The roots at which another lxcfs is than when they were looked at before. That there is none is
/// said, and nothing can be done about it.
fn changed(
    containers: &[Container],
    seen: &mut BTreeMap<PathBuf, Option<(u32, u32)>>,
) -> Vec<PathBuf> {
    let roots = containers.iter().map(|container| &container.view.root);
    let mut roots: Vec<_> = roots.collect();
    roots.sort_unstable();
    roots.dedup();
    let mut changed = Vec::new();
    for root in roots {
        let device = device(root).ok();
        if seen.insert(root.clone(), device) == Some(device) {
            continue;
        }
        match Mounted::at(root) {
            Ok(_) => changed.push(root.clone()),
            Err(error) => {
                let error = error.chain();
                tracing::warn!(error, "views are dead until it is back");
            }
        }
    }
    changed
}

/// The device at a path, which is not asked anything.
fn device(root: &Path) -> io::Result<(u32, u32)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    sys::filesystem::device_of(open(root, flags, Mode::empty())?)
}

/// Waits until the mounts of this process's namespace have changed since it was last asked.
fn wait(mounts: &File) -> io::Result<()> {
    loop {
        let mut polled = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
