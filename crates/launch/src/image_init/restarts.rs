//! A program that is started again when it ends, as a job of an image's init.
//!
//! ```text
//!   the job's process -- fork --> parent of the program, as without a restart -- fork --> program
//!     | <------ its code -----------|
//!     | waits, and forks anew; TERM is passed on, and after it nothing starts any more
//! ```
//! The first one keeps the right to start programs, so it is a process of its own.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sys::process::{Fork, kill_number};
use sys::{Child, ExitStatus, Pid};

use crate::error::{Result, host};
use crate::plan::Restart;
use crate::services::{STEADY, WAIT_MAX, WAIT_MIN};

/// Which process goes on.
pub(super) enum Side {
    /// The first one, with how the program ended the last time.
    First(i32),
    /// The one that is to be the program's parent.
    Parent,
}

/// Forks the parent of the program as often as `policy` says; tells each code.
///
/// # Errors
/// What keeps it from forking or waiting.
pub(super) fn run(policy: Restart, tell: &mut impl FnMut(i32) -> Result<()>) -> Result<Side> {
    let step = || "wait for the program".to_owned();
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(host(step))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&SigSet::all(), flags).map_err(host(step))?;
    let mut first = First {
        signals,
        child: None,
        is_ending: false,
    };
    let mut wait = WAIT_MIN;
    loop {
        let since = Instant::now();
        match sys::process::fork().map_err(host(step))? {
            Fork::Parent(child) => {
                sys::watch(Child::adopt(child));
                first.child = Some(child);
            }
            Fork::Child => {
                before.thread_set_mask().map_err(host(step))?;
                return Ok(Side::Parent);
            }
        }
        let code = first.code()?;
        tell(code)?;
        if first.is_ending || !wants(policy, code) {
            return Ok(Side::First(code));
        }
        if since.elapsed() >= STEADY {
            wait = WAIT_MIN;
        }
        first.pause(wait)?;
        if first.is_ending {
            return Ok(Side::First(code));
        }
        wait = (wait * 2).min(WAIT_MAX);
    }
}

fn wants(policy: Restart, code: i32) -> bool {
    match policy {
        Restart::Never => false,
        Restart::OnFailure => code != 0,
        Restart::Always => true,
    }
}

struct First {
    signals: SignalFd,
    /// The program's parent, if there is one.
    child: Option<Pid>,
    is_ending: bool,
}

impl First {
    /// Waits for the end of the child.
    fn code(&mut self) -> Result<i32> {
        loop {
            if let Some(status) = self.next(None)? {
                return Ok(status.code());
            }
        }
    }

    /// Waits so long, or until all shall end.
    fn pause(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.is_ending {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.next(Some(left))?;
        }
        Ok(())
    }

    /// Takes what signals there are; gives how the child has ended, if it has.
    fn next(&mut self, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
        let step = || "wait for the program".to_owned();
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let limit = limit.map_or(PollTimeout::NONE, |limit| {
            // Up to the next millisecond: an early wake would be for nothing.
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        poll(&mut fds, limit).map_err(host(step))?;
        let mut ended = None;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            if number == Signal::SIGCHLD as i32 {
                for (pid, status) in sys::reap() {
                    if self.child == Some(pid) {
                        self.child = None;
                        ended = Some(status);
                    }
                }
                continue;
            }
            self.is_ending |= number == Signal::SIGTERM as i32;
            if let Some(child) = self.child {
                // ESRCH: it has just ended, which is seen next.
                let _sent = kill_number(child, number);
            }
        }
        Ok(ended)
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
}
