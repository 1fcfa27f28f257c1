//! Waiting with a limit for what the kernel can tell about: descriptors, processes, directories, mounts.
//!
//! Nothing here sleeps. Where the kernel tells nothing (cgroup files, a state that only another
//! program knows), the question is asked again after a bounded `poll`.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The limit for things that take milliseconds when all is well, on a loaded two-core machine.
pub const SOON: Duration = Duration::from_secs(30);

/// How long a question waits for an event before it is asked again without one.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A point in time after which waiting is a failure.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline that lies `limit` from now.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// What is left, zero when it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// True once it has passed.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// `poll(2)` until one of `fds` is ready; false when the deadline came first.
    pub fn poll(self, fds: &mut [PollFd<'_>]) -> Result<bool> {
        loop {
            let timeout = PollTimeout::try_from(self.left().as_millis().saturating_add(1))
                .unwrap_or(PollTimeout::MAX);
            match poll(fds, timeout) {
                Ok(0) if self.is_over() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error).context("polling"),
            }
        }
    }
}

/// A descriptor that becomes readable when the process has ended; `None` when it already has.
pub fn process_end(pid: i32) -> Result<Option<OwnedFd>> {
    let raw = Pid::from_raw(pid).with_context(|| format!("{pid} is no process id"))?;
    match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("opening a pidfd of {pid}")),
    }
}

/// Waits until the process has ended.
pub fn for_end_of(pid: i32, limit: Duration) -> Result<()> {
    let Some(fd) = process_end(pid)? else {
        return Ok(());
    };
    if !is_readable(fd.as_fd(), limit)? {
        bail!("process {pid} still runs after {limit:?}");
    }
    Ok(())
}

/// Waits until the descriptor can be read (or has hung up); false when it cannot within `limit`.
pub fn is_readable(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    Deadline::after(limit).poll(&mut [PollFd::new(fd, PollFlags::POLLIN)])
}

/// What may announce that the answer to a question has changed.
#[derive(Debug, Default)]
pub struct Sources {
    directories: Option<Inotify>,
    mounts: Option<File>,
    processes: Vec<OwnedFd>,
}

impl Sources {
    /// No source: the question is asked every 50 ms.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Entries that come and go in, and files that are written below, `directory` (not recursive).
    pub fn directory(mut self, directory: &Path) -> Result<Self> {
        if self.directories.is_none() {
            self.directories = Some(Inotify::init(
                InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK,
            )?);
        }
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE_SELF;
        self.directories
            .as_ref()
            .expect("was just made")
            .add_watch(directory, events)
            .with_context(|| format!("watching {}", directory.display()))?;
        Ok(self)
    }

    /// The end of a process.
    pub fn process(mut self, pid: i32) -> Result<Self> {
        self.processes.extend(process_end(pid)?);
        Ok(self)
    }

    /// Any change of the mounts of this mount namespace.
    pub fn mounts(mut self) -> Result<Self> {
        self.mounts = Some(File::open("/proc/self/mountinfo")?);
        Ok(self)
    }

    /// Returns at the next event, at the latest after 50 ms or at the deadline.
    fn next(&mut self, deadline: Deadline) -> Result<()> {
        let mut fds = Vec::new();
        fds.extend(
            self.directories
                .iter()
                .map(|i| PollFd::new(i.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(
            self.mounts
                .iter()
                .map(|m| PollFd::new(m.as_fd(), PollFlags::POLLPRI)),
        );
        let others = fds.len();
        fds.extend(
            self.processes
                .iter()
                .map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)),
        );
        Deadline::after(ASK_AGAIN.min(deadline.left())).poll(&mut fds)?;
        let ended: Vec<bool> = fds[others..]
            .iter()
            .map(|fd| fd.any().unwrap_or_default())
            .collect();
        let mut ended = ended.iter();
        self.processes
            .retain(|_| !ended.next().expect("one answer for each"));
        if let Some(inotify) = &self.directories {
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        Ok(())
    }
}

/// Asks `question` until it answers, at each event of the sources; fails with `what` at the limit.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut sources: Sources,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Deadline::after(limit);
    loop {
        if let Some(answer) = question()? {
            return Ok(answer);
        }
        if deadline.is_over() {
            bail!("waited {limit:?} in vain: {what}");
        }
        sources.next(deadline)?;
    }
}
