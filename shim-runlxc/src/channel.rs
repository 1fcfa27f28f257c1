//! The host's end of the control socket to a stub: what is waited for has a limit, however many
//! messages it takes and however slowly they come.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use launch::control::{self, FromStub, Limit, Received, ToStub};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sys::{Child, ExitStatus, Pid};

use crate::wait::{self, Came};
use crate::{Error, Result};

/// One end of a stream socket; the stub has the other.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    waiting_for: Wait,
}

/// What is waited for, and until when.
#[derive(Debug, Clone, Copy)]
struct Wait {
    what: &'static str,
    limit: Duration,
    deadline: Instant,
}

impl Wait {
    fn new(what: &'static str, limit: Duration) -> Self {
        Self {
            what,
            limit,
            deadline: Instant::now() + limit,
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn over(&self) -> Error {
        Error::Timeout {
            what: self.what,
            limit: self.limit,
        }
    }
}

impl Channel {
    /// A channel, and the end for the stub. `what` is waited for from now on, and at most so long.
    ///
    /// # Errors
    /// When the kernel has no sockets to give.
    pub(crate) fn pair(what: &'static str, limit: Duration) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            sys::socketpair_stream_cloexec().map_err(Error::io("make a socket pair"))?;
        sys::enable_passcred(&ours).map_err(Error::io("set SO_PASSCRED"))?;
        Ok((Self::over(ours, what, limit)?, theirs))
    }

    /// A channel over a connected socket.
    ///
    /// # Errors
    /// When the socket refuses.
    pub(crate) fn over(socket: OwnedFd, what: &'static str, limit: Duration) -> Result<Self> {
        // The flag is this end's alone, and what makes limits possible.
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(|errno| Error::io("make a socket non-blocking")(errno.into()))?;
        Ok(Self {
            socket,
            waiting_for: Wait::new(what, limit),
        })
    }

    /// Our end once more: for whoever goes on when this channel has said and heard all.
    ///
    /// # Errors
    /// When there are no descriptors to give.
    pub(crate) fn duplicate(&self) -> Result<OwnedFd> {
        let socket = self.socket.try_clone();
        socket.map_err(Error::io("duplicate a descriptor"))
    }

    /// From now on this is waited for, and at most so long, with however many messages.
    pub(crate) fn wait_for(&mut self, what: &'static str, limit: Duration) {
        self.waiting_for = Wait::new(what, limit);
    }

    /// What is left of the limit.
    pub(crate) fn left(&self) -> Duration {
        self.waiting_for.left()
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`Error::Timeout`], or that the stub is gone.
    pub(crate) fn send(&self, message: &ToStub) -> Result<()> {
        self.send_with(message, &[])
    }

    /// Sends one message with descriptors.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub(crate) fn send_with(&self, message: &ToStub, fds: &[BorrowedFd<'_>]) -> Result<()> {
        control::send_within(self.socket.as_fd(), message, fds, self.limit())
            .map_err(|e| self.named(e))
    }

    /// Waits for the next message, but not beyond the end of `child`, whose status then comes.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn await_word(&self, child: &mut Child) -> Result<Option<ExitStatus>> {
        match wait::word_or_end(self.socket.as_fd(), child, self.left())? {
            Came::Word => Ok(None),
            Came::End(status) => Ok(Some(status)),
            Came::Nothing => Err(self.waiting_for.over()),
        }
    }

    /// Receives one message; none when the stub has closed its end.
    ///
    /// # Errors
    /// [`Error::Inside`] when the stub tells of a failure, [`Error::Timeout`].
    pub(crate) fn receive(&self) -> Result<Option<Received<FromStub>>> {
        let received = control::recv_within::<FromStub>(self.socket.as_fd(), self.limit());
        match received.map_err(|e| self.named(e))? {
            Some(Received {
                message: FromStub::Failed(failure),
                ..
            }) => Err(Error::Inside(failure)),
            other => Ok(other),
        }
    }

    /// Waits for the first word of a stub; gives its pid here, or none when it has closed its end.
    /// `who` is how errors call it.
    ///
    /// # Errors
    /// As [`Channel::receive`], or [`Error::Vanished`] for another word.
    pub(crate) fn hello(&self, who: &'static str) -> Result<Option<Pid>> {
        let Some(word) = self.receive()? else {
            return Ok(None);
        };
        let vanished = |hint: &str| Error::Vanished {
            what: who,
            hint: hint.to_owned(),
        };
        if word.message != FromStub::Hello {
            return Err(vanished(": it did not say hello"));
        }
        match word.credentials {
            Some(sender) if sender.pid > 0 => Ok(Some(Pid::from_raw(sender.pid))),
            _ => Err(vanished(": the kernel does not tell its pid")),
        }
    }

    /// Lets the stub move into cgroups of version 1, by their `tasks` files, if there are any.
    /// `who` is how errors call it.
    ///
    /// # Errors
    /// As [`Channel::receive`], or [`Error::Vanished`].
    pub(crate) fn enter(&self, who: &'static str, tasks: &[(PathBuf, OwnedFd)]) -> Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let path = |(path, _): &(PathBuf, OwnedFd)| path.to_string_lossy().into_owned();
        let paths = tasks.iter().map(path).collect();
        let fds: Vec<_> = tasks.iter().map(|(_, file)| file.as_fd()).collect();
        self.send_with(&ToStub::Enter(paths), &fds)?;
        match self.receive()? {
            Some(received) if received.message == FromStub::Entered => Ok(()),
            _ => Err(Error::Vanished {
                what: who,
                hint: ": it entered no cgroup".to_owned(),
            }),
        }
    }

    fn limit(&self) -> Limit {
        Limit::Until(self.waiting_for.deadline)
    }

    fn named(&self, error: launch::Error) -> Error {
        match &error {
            launch::Error::Socket { source, .. } if source.kind() == ErrorKind::TimedOut => {
                self.waiting_for.over()
            }
            _ => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use launch::control::{Failure, FailureKind};

    #[test]
    fn waits_end_failures_are_errors_and_an_end_is_none() {
        let (mut channel, stub) = Channel::pair("a test", Duration::ZERO).unwrap();
        assert!(matches!(
            channel.receive(),
            Err(Error::Timeout { what: "a test", .. })
        ));
        channel.wait_for("a message", Duration::from_secs(20));
        control::send(&stub, &FromStub::Hello, &[]).unwrap();
        let pid = channel.hello("the stub").unwrap().unwrap();
        assert_eq!(pid.as_raw().unsigned_abs(), std::process::id());
        control::send(&stub, &FromStub::Ready, &[]).unwrap();
        let other = channel.hello("the stub").unwrap_err().to_string();
        assert_eq!(other, "the stub ended unexpectedly: it did not say hello");
        let failure = Failure {
            step: "mount x".into(),
            errno: 1,
            kind: FailureKind::Host,
        };
        control::send(&stub, &FromStub::Failed(failure), &[]).unwrap();
        assert!(matches!(channel.receive(), Err(Error::Inside(f)) if f.step == "mount x"));
        channel.enter("the stub", &[]).unwrap();
        let tasks = [("/a/tasks".into(), sys::pipe_cloexec().unwrap().1)];
        control::send(&stub, &FromStub::Entered, &[]).unwrap();
        channel.enter("the stub", &tasks).unwrap();
        let asked: Received<ToStub> = control::recv(&stub).unwrap().unwrap();
        assert_eq!(asked.message, ToStub::Enter(vec!["/a/tasks".to_owned()]));
        assert_eq!(asked.fds.len(), 1);
        drop(stub);
        assert!(channel.receive().unwrap().is_none());
    }

    #[test]
    fn one_limit_is_for_all_messages_that_are_waited_for() {
        let (mut channel, stub) = Channel::pair("a test", Duration::from_secs(20)).unwrap();
        control::send(&stub, &FromStub::Hello, &[]).unwrap();
        assert!(channel.receive().unwrap().is_some());
        assert!(channel.left() < Duration::from_secs(20));
        channel.wait_for("the past", Duration::ZERO);
        assert!(matches!(
            channel.receive(),
            Err(Error::Timeout {
                what: "the past",
                ..
            })
        ));
    }
}
