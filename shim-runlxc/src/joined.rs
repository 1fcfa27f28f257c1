//! A process of a container that somebody waits for: a child of ours, or one whose end its pid 1 tells.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use launch::control::{self, FromStub, Limit, Received};
use sys::{Child, ExitStatus, Pid, Signal};

use crate::container::KILL_LIMIT;
use crate::process::ProcessId;
use crate::wait::{self, Mortal};
use crate::{Error, Result};

/// How long pid 1 may take for the few bytes that tell an end, once it has begun.
const WORD_LIMIT: Duration = Duration::from_secs(10);

/// Stack of a thread that waits for such a word, in bytes.
const STACK_BYTES: usize = 128 << 10;

/// What is said of a process whose end its pid 1 did not tell: it died with pid 1, which nobody but
/// SIGKILL takes by surprise.
const WITH_PID_ONE: ExitStatus = ExitStatus::Signaled(Signal::SIGKILL as i32);

/// The process. Dropped, it is killed, unless it was released or watched.
#[derive(Debug)]
pub enum Joined {
    /// Our child, or about to become it.
    Ours(Child),
    /// Another's; pid 1 of its container tells its end.
    Told(Told),
}

/// A process whose end comes by a socket.
#[derive(Debug)]
pub struct Told {
    id: ProcessId,
    /// Of pid 1, which has ended when it is closed at its other end.
    socket: OwnedFd,
    /// Whether the process is pid 1 itself, which tells of the program's end just before its own.
    is_pid_one: bool,
    status: Option<ExitStatus>,
    /// Whether it lives on without this value.
    is_released: bool,
}

impl Joined {
    /// Pid 1 of a container, which tells its program's end on its control socket.
    pub(crate) fn pid_one(id: ProcessId, control: OwnedFd) -> Self {
        Self::Told(Told {
            id,
            socket: control,
            is_pid_one: true,
            status: None,
            is_released: false,
        })
    }

    /// A child of pid 1, which tells its end on this connection.
    pub(crate) fn child_of_pid_one(id: ProcessId, connection: OwnedFd) -> Self {
        Self::Told(Told {
            id,
            socket: connection,
            is_pid_one: false,
            status: None,
            is_released: false,
        })
    }

    /// Its number in our pid namespace.
    #[must_use]
    pub fn pid(&self) -> Pid {
        match self {
            Self::Ours(child) => child.pid(),
            Self::Told(told) => told.id.as_pid(),
        }
    }

    /// What is readable when it may have ended; none: SIGCHLD tells.
    pub(crate) fn news(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Ours(_) => None,
            Self::Told(told) => Some(told.socket.as_fd()),
        }
    }

    /// Sends a signal by number.
    ///
    /// # Errors
    /// ESRCH when it has ended.
    pub(crate) fn kill_number(&self, signal: i32) -> io::Result<()> {
        match self {
            Self::Ours(child) => child.kill_number(signal),
            Self::Told(told) => match told.id.signal(signal) {
                Err(Error::NotRunning) => Err(nix::errno::Errno::ESRCH.into()),
                other => other.map_err(|error| io::Error::other(error.chain())),
            },
        }
    }

    /// Waits until it has ended, but not longer than `limit`; none when it still runs.
    ///
    /// # Errors
    /// When the kernel refuses to wait; ECHILD when its status is lost.
    pub(crate) fn wait_timeout(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        match self {
            Self::Ours(child) => child.wait_timeout(limit),
            Self::Told(told) => told.wait(limit),
        }
    }

    /// Lets it run on.
    pub fn release(self) {
        match self {
            Self::Ours(child) => child.release(),
            Self::Told(mut told) => told.is_released = true,
        }
    }

    /// Leaves its end to [`sys::reap`]; gives its pid.
    ///
    /// # Errors
    /// When the host has no thread to give.
    pub(crate) fn watch(self) -> Result<Pid> {
        match self {
            Self::Ours(child) => Ok(sys::watch(child)),
            Self::Told(mut told) => {
                let pid = told.id.as_pid();
                std::thread::Builder::new()
                    .name("told-end".to_owned())
                    .stack_size(STACK_BYTES)
                    .spawn(move || {
                        told.is_released = true;
                        sys::announce(pid, told.wait_for_ever());
                    })
                    .map_err(Error::io("start a thread"))?;
                Ok(pid)
            }
        }
    }
}

impl Mortal for Joined {
    fn pid(&self) -> Pid {
        Self::pid(self)
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match self {
            Self::Ours(child) => child.try_wait(),
            Self::Told(told) => told.wait(Duration::ZERO),
        }
    }
}

impl Told {
    fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.status {
            return Ok(Some(status));
        }
        let other = |error: Error| io::Error::other(error.chain());
        if !wait::readable(self.socket.as_fd(), limit).map_err(other)? {
            return Ok(None);
        }
        let status = self.hear();
        self.status = Some(status);
        if self.is_pid_one {
            // It is on its way out, with whoever is left in its namespace.
            wait::until_ended(self.id, KILL_LIMIT).map_err(other)?;
        }
        Ok(Some(status))
    }

    fn wait_for_ever(&mut self) -> ExitStatus {
        const LONG: Duration = Duration::from_secs(3600);
        loop {
            match self.wait(LONG) {
                Ok(Some(status)) => return status,
                Ok(None) => {}
                Err(error) => {
                    let (pid, error) = (self.id.pid, error.to_string());
                    tracing::warn!(pid, error, "its end cannot be waited for");
                    return self.status.unwrap_or(ExitStatus::LOST);
                }
            }
        }
    }

    /// Reads the word of its end. The socket is the container's: whatever else comes by it, and its
    /// end, stand for an end that nobody tells.
    fn hear(&self) -> ExitStatus {
        let limit = Limit::Until(Instant::now() + WORD_LIMIT);
        match control::recv_within::<FromStub>(self.socket.as_fd(), limit) {
            Ok(Some(Received {
                message: FromStub::Ended(ended),
                ..
            })) => ended.into(),
            _ => WITH_PID_ONE,
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if self.is_released || self.status.is_some() {
            return;
        }
        if let Err(error) = self.id.kill() {
            let (pid, error) = (self.id.pid, error.chain());
            tracing::warn!(pid, error, "cannot be killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use launch::control::Ended;
    use sys::Spawn;

    use super::*;

    /// A sleeping process whose end comes by the second.
    fn told(is_pid_one: bool) -> (Child, Told, UnixStream) {
        let child = Spawn::new("/bin/sleep".as_ref()).args(["1000"]);
        let child = child.spawn().unwrap();
        let id = ProcessId::of(child.pid().as_raw()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let told = Told {
            id,
            socket: ours.into(),
            is_pid_one,
            status: None,
            is_released: false,
        };
        (child, told, theirs)
    }

    #[test]
    fn an_end_is_what_pid_one_tells() {
        let (_child, mut told, theirs) = told(false);
        assert_eq!(told.wait(Duration::ZERO).unwrap(), None);
        control::send(&theirs, &FromStub::Ended(Ended::Exited(7)), &[]).unwrap();
        let status = Some(ExitStatus::Exited(7));
        assert_eq!(told.wait(Duration::from_secs(20)).unwrap(), status);
        assert_eq!(told.wait(Duration::ZERO).unwrap(), status);
    }

    #[test]
    fn what_is_no_end_is_that_of_a_pid_one_that_was_killed() {
        for message in [None, Some(FromStub::Hello)] {
            let (_child, mut told, theirs) = told(false);
            if let Some(message) = message {
                control::send(&theirs, &message, &[]).unwrap();
            }
            drop(theirs);
            let status = told.wait(Duration::from_secs(20)).unwrap();
            assert_eq!(status, Some(ExitStatus::Signaled(9)));
        }
        let (_child, told, theirs) = told(false);
        control::send(&theirs, &FromStub::Ended(Ended::Exited(0x1234)), &[]).unwrap();
        assert_eq!(told.hear(), ExitStatus::Exited(0x34));
    }

    #[test]
    fn pid_one_has_ended_when_its_end_is_told() {
        let (mut child, mut told, theirs) = told(true);
        let id = told.id;
        control::send(&theirs, &FromStub::Ended(Ended::Signaled(15)), &[]).unwrap();
        let waiting = std::thread::spawn(move || told.wait(Duration::from_secs(20)).unwrap());
        child.kill(Signal::SIGKILL).unwrap();
        assert_eq!(waiting.join().unwrap(), Some(ExitStatus::Signaled(15)));
        assert_ne!(id.liveness().unwrap(), crate::process::Liveness::Alive);
        child.wait().unwrap();
    }

    #[test]
    fn dropped_it_is_killed_and_released_it_is_not() {
        let (mut child, told, _theirs) = told(false);
        Joined::Told(told).release();
        assert_eq!(child.try_wait().unwrap(), None);
        let (mut other, told, _theirs) = self::told(false);
        drop(Joined::Told(told));
        assert_eq!(other.wait().unwrap(), ExitStatus::Signaled(9));
    }
}
