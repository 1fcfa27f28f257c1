//! Kills for memory in one container's cgroup, told when they happen: by a thread of their own, and by
//! whoever is about to tell that a process has ended, so that the end is not told before its reason.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use cgroups::{Cgroup, OomNews, OomWatch};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};

/// Listens at one cgroup.
#[derive(Debug)]
pub(crate) struct Oom(Mutex<OomWatch>);

/// Whether there is going to be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listening {
    On,
    /// Nobody is in the cgroup any more.
    Ended,
}

impl Oom {
    /// From now on.
    pub(crate) fn watch(cgroup: &Cgroup) -> Result<Self> {
        Ok(Self(Mutex::new(cgroup.oom_watch()?)))
    }

    /// Tells what was not told yet; returns when it was told, by whomever.
    pub(crate) fn tell(&self, tell: &impl Fn()) -> Listening {
        // No code panics while it holds the lock.
        let mut watch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match watch.take() {
                Ok(OomNews::OutOfMemory) => tell(),
                Ok(OomNews::Nothing) => return Listening::On,
                // Of a cgroup that cannot be read there is no news.
                Ok(OomNews::Gone) | Err(_) => return Listening::Ended,
            }
        }
    }

    /// Tells each time, until nobody is in the cgroup any more.
    pub(crate) fn follow(&self, tell: impl Fn()) -> Result<()> {
        let changes = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::io("duplicate a descriptor"))?;
        loop {
            let mut fds = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("wait for kills for memory")(errno)),
            }
            if self.tell(&tell) == Listening::Ended {
                return Ok(());
            }
        }
    }
}
