//! A program that is started again when it ends.
//!
//! ```text
//!   the first one -- fork --> the program, or the parent of it, as without a restart
//!     | <----- its code ---------|
//!     | waits, and forks anew; after a signal to stop nothing starts any more
//! ```
//! The first one keeps the right to start programs, so it is a process of its own. It must not give a
//! program more than what it has itself.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sys::process::{Fork, kill_number};
use sys::{Child, ExitStatus, Pid};

use crate::error::{Result, host};
use crate::plan::Restart;
use crate::services::{STEADY, WAIT_MAX, WAIT_MIN};

/// Whom the signals for a program come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signals {
    /// The first process alone, which passes them on; TERM stops all.
    First,
    /// The group of both; any of those stops all.
    Group {
        /// Their numbers.
        stops: Vec<i32>,
    },
}

impl Signals {
    fn has_stop(&self, number: i32) -> bool {
        match self {
            Self::First => number == Signal::SIGTERM as i32,
            Self::Group { stops } => stops.contains(&number),
        }
    }
}

/// Which process goes on after a fork.
pub(crate) enum Side {
    /// The one that waits for the other.
    First,
    /// The one that is to be the program, or the parent of it.
    Forked(Line),
    /// That one, too, but it is to end: all stops.
    Stopped,
}

/// What joins the two until the program runs.
pub(crate) struct Line(UnixStream);

impl Line {
    /// Says that the program could not be executed: no other try is made.
    pub(crate) fn failed(&mut self) {
        // The first one may have been killed.
        let _unheard = self.0.write(&[0]);
    }
}

/// The first process.
pub(crate) struct Restarts {
    policy: Restart,
    whose: Signals,
    before: SigSet,
    signals: SignalFd,
    /// The one that was forked last, while it lives.
    child: Option<Pid>,
    /// How that has ended, until somebody asks.
    ended: Option<ExitStatus>,
    line: Option<UnixStream>,
    since: Instant,
    wait: Duration,
    /// The signal to stop, once it has come.
    stopped_by: Option<i32>,
    last: Option<i32>,
}

fn step() -> String {
    "wait for the program".to_owned()
}

impl Restarts {
    /// Blocks all signals, so that none is lost.
    ///
    /// # Errors
    /// What keeps it from waiting for them.
    pub(crate) fn new(policy: Restart, whose: Signals) -> Result<Self> {
        let before = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(host(step))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&SigSet::all(), flags).map_err(host(step))?;
        Ok(Self {
            policy,
            whose,
            before,
            signals,
            child: None,
            ended: None,
            line: None,
            since: Instant::now(),
            wait: WAIT_MIN,
            stopped_by: None,
            last: None,
        })
    }

    /// Forks.
    ///
    /// # Errors
    /// What keeps it from that.
    pub(crate) fn fork(&mut self) -> Result<Side> {
        let (mut own, mut other) = UnixStream::pair().map_err(host(step))?;
        self.since = Instant::now();
        match sys::process::fork().map_err(host(step))? {
            Fork::Child => {
                drop(own);
                // Not before: what comes to the group from now on is for this process, too.
                if !matches!(other.read(&mut [0]), Ok(1)) {
                    return Ok(Side::Stopped);
                }
                self.before.thread_set_mask().map_err(host(step))?;
                Ok(Side::Forked(Line(other)))
            }
            Fork::Parent(child) => {
                drop(other);
                sys::watch(Child::adopt(child));
                self.child = Some(child);
                // One that came before the fork came to this process alone.
                self.take_signals();
                if self.stopped_by.is_none() {
                    // One that was killed is reaped next.
                    let _gone = own.write(&[0]);
                    self.line = Some(own);
                }
                Ok(Side::First)
            }
        }
    }

    /// Waits until the one that was forked has ended, and until it is time for another; gives the code
    /// of the last one when there is to be none.
    ///
    /// # Errors
    /// What keeps it from waiting, and from telling a code.
    pub(crate) fn wait(&mut self, mut tell: impl FnMut(i32) -> Result<()>) -> Result<Option<i32>> {
        let code = self.code()?;
        tell(code)?;
        self.last = Some(code);
        if self.stopped_by.is_some() || !wants(self.policy, code) || self.has_failed() {
            return Ok(Some(code));
        }
        if self.since.elapsed() >= STEADY {
            self.wait = WAIT_MIN;
        }
        self.pause(self.wait)?;
        self.wait = (self.wait * 2).min(WAIT_MAX);
        Ok(self.stopped_by.map(|_| code))
    }

    /// The code that the child ended with; of one that was not let on, that of the one before it.
    fn code(&mut self) -> Result<i32> {
        let status = loop {
            match self.ended.take() {
                Some(status) => break status,
                None => self.next(None)?,
            }
        };
        Ok(match (&self.line, self.last) {
            (Some(_), _) => status.code(),
            (None, Some(last)) => last,
            (None, None) => self.stopped(),
        })
    }

    /// Of a program that was stopped before it ran, as of one that the signal has ended.
    fn stopped(&self) -> i32 {
        128 + self.stopped_by.unwrap_or_default()
    }

    /// Whether the program could not be executed; nobody has the other end any more.
    fn has_failed(&mut self) -> bool {
        let Some(mut line) = self.line.take() else {
            return false;
        };
        line.set_nonblocking(true).is_ok() && matches!(line.read(&mut [0]), Ok(1))
    }

    /// Waits so long, or until all shall stop.
    fn pause(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.stopped_by.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.next(Some(left))?;
        }
        Ok(())
    }

    /// Waits for signals, and takes them.
    fn next(&mut self, limit: Option<Duration>) -> Result<()> {
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let limit = limit.map_or(PollTimeout::NONE, |limit| {
            // Up to the next millisecond: an early wake would be for nothing.
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        poll(&mut fds, limit).map_err(host(step))?;
        self.take_signals();
        Ok(())
    }

    /// Takes what signals there are, and the end of the child with them.
    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            if number == Signal::SIGCHLD as i32 {
                self.reap();
                continue;
            }
            if self.whose.has_stop(number) {
                self.stopped_by.get_or_insert(number);
            }
            if let (Signals::First, Some(child)) = (&self.whose, self.child) {
                // ESRCH: it has just ended, which is seen next.
                let _sent = kill_number(child, number);
            }
        }
    }

    fn reap(&mut self) {
        for (pid, status) in sys::reap() {
            if self.child == Some(pid) {
                self.child = None;
                self.ended = Some(status);
            }
        }
    }
}

fn wants(policy: Restart, code: i32) -> bool {
    match policy {
        Restart::Never => false,
        Restart::OnFailure => code != 0,
        Restart::Always => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_looks_at_the_code() {
        for (policy, after_0, after_3) in [
            (Restart::Never, false, false),
            (Restart::OnFailure, false, true),
            (Restart::Always, true, true),
        ] {
            assert_eq!((wants(policy, 0), wants(policy, 3)), (after_0, after_3));
        }
    }

    #[test]
    fn any_signal_to_stop_ends_a_wait_and_another_does_not() {
        let after = |raised: &'static [Signal]| {
            let seen = std::thread::spawn(move || {
                let stops = vec![Signal::SIGINT as i32, Signal::SIGTERM as i32];
                let mut restarts =
                    Restarts::new(Restart::Always, Signals::Group { stops }).unwrap();
                for signal in raised {
                    nix::sys::signal::raise(*signal).unwrap();
                    restarts.take_signals();
                }
                (restarts.stopped_by, restarts.stopped())
            });
            seen.join().unwrap()
        };
        assert_eq!(after(&[Signal::SIGINT]), (Some(2), 130));
        assert_eq!(after(&[Signal::SIGINT, Signal::SIGTERM]), (Some(2), 130));
        assert_eq!(after(&[Signal::SIGUSR1]).0, None);
    }
}
