//! Waiting for a process that need not be our child, with a limit.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};

use sys::{Child, ExitStatus, Pid};

use crate::process::{Liveness, ProcessId};
use crate::{Error, Result};

/// How often a process is looked at on kernels without pidfd_open(2) (before 5.3).
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until `process` has ended (a zombie has).
///
/// # Errors
/// [`Error::Timeout`] after `limit`.
pub(crate) fn until_ended(process: ProcessId, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    // Opened before the look: the number cannot change hands between the two unnoticed.
    let pidfd = sys::process::pidfd_open(process.as_pid()).ok();
    while process.liveness()? == Liveness::Alive {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout {
                what: "the end of a killed process",
                limit,
            });
        }
        match &pidfd {
            Some(pidfd) => {
                readable(pidfd.as_fd(), left)?;
            }
            None => pause(LOOK_EVERY.min(left))?,
        }
    }
    Ok(())
}

/// So long, but not beyond `deadline`, if there is one.
pub(crate) fn within(deadline: Option<Instant>, limit: Duration) -> Duration {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    left.map_or(limit, |left| left.min(limit))
}

/// Whoever can be asked whether it has ended.
pub(crate) trait Mortal {
    /// Its number in our pid namespace.
    fn pid(&self) -> Pid;

    /// Takes its status if it has ended.
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>>;
}

impl Mortal for Child {
    fn pid(&self) -> Pid {
        Self::pid(self)
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        Self::try_wait(self)
    }
}

/// What came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// Something to read, or the end of it.
    Word,
    /// The child's end, and nothing to read.
    End(ExitStatus),
    /// The limit.
    Nothing,
}

/// Waits until `socket` has something to read, or `child` has ended without a word there: others
/// may hold the socket's far end open for ever.
///
/// # Errors
/// When poll(2) or waitpid(2) fails.
pub(crate) fn word_or_end(
    socket: BorrowedFd<'_>,
    child: &mut impl Mortal,
    limit: Duration,
) -> Result<Came> {
    let deadline = Instant::now() + limit;
    let pidfd = sys::process::pidfd_open(child.pid()).ok();
    loop {
        let ended = child.try_wait().map_err(Error::io("wait for a child"))?;
        let left = match ended {
            Some(_) => Duration::ZERO,
            None => deadline.saturating_duration_since(Instant::now()),
        };
        let mut fds = vec![PollFd::new(socket, PollFlags::POLLIN)];
        fds.extend(
            pidfd
                .iter()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        wait(
            &mut fds,
            if pidfd.is_some() {
                left
            } else {
                LOOK_EVERY.min(left)
            },
        )?;
        if fds[0].any().unwrap_or_default() {
            return Ok(Came::Word);
        }
        match ended {
            Some(status) => return Ok(Came::End(status)),
            None if left.is_zero() => return Ok(Came::Nothing),
            None => {}
        }
    }
}

/// Waits until there is something to read, or the end of it; false after `limit`.
pub(crate) fn readable(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    wait(&mut fds, limit)?;
    Ok(fds[0].any().unwrap_or_default())
}

/// Waits until one of them has something to read, or the end of it, but not longer than `limit`.
pub(crate) fn any_readable(fds: &[BorrowedFd<'_>], limit: Duration) -> Result<()> {
    let fds = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
    wait(&mut fds.collect::<Vec<_>>(), limit)
}

pub(crate) fn pause(limit: Duration) -> Result<()> {
    wait(&mut [], limit)
}

fn wait(fds: &mut [PollFd<'_>], limit: Duration) -> Result<()> {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(Error::io("poll")(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::Spawn;

    fn shell(script: &str) -> Child {
        let spawn = Spawn::new("/bin/sh".as_ref());
        spawn.args(["-c", script]).spawn().unwrap()
    }

    #[test]
    fn a_child_that_ends_without_a_word_is_noticed_while_others_hold_the_socket() {
        let (ours, held_open) = sys::socketpair_stream_cloexec().unwrap();
        let limit = Duration::from_secs(20);
        let came = word_or_end(ours.as_fd(), &mut shell("exit 3"), limit).unwrap();
        assert_eq!(came, Came::End(ExitStatus::Exited(3)));
        nix::unistd::write(&held_open, b"x").unwrap();
        let came = word_or_end(ours.as_fd(), &mut shell("exit 0"), limit).unwrap();
        assert_eq!(came, Came::Word);
    }

    #[test]
    fn a_deadline_shortens_a_limit_and_nothing_is_left_behind_it() {
        let (now, limit) = (Instant::now(), Duration::from_secs(60));
        assert_eq!(within(None, limit), limit);
        assert_eq!(within(Some(now + limit * 2), limit), limit);
        assert!(within(Some(now + limit / 2), limit) <= limit / 2);
        assert_eq!(within(Some(now), limit), Duration::ZERO);
    }

    #[test]
    fn the_limit_is_kept() {
        let (ours, _held_open) = sys::socketpair_stream_cloexec().unwrap();
        let mut child = shell("exec sleep 1000");
        let came = word_or_end(ours.as_fd(), &mut child, Duration::from_millis(1)).unwrap();
        assert_eq!(came, Came::Nothing);
    }
}
