//! A program that is started again when it ends.
//!
//! ```text
//!   the first one -- fork --> the program, or the parent of it, as without a restart
//!     | <----- its code ---------|
//!     | waits, and forks anew; after a signal to stop nothing starts any more
//! ```
//! The first one keeps the right to start programs, so it is a process of its own. It must not give a
//! program more than what it has itself.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::getpgid;
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
    /// The group of both, to which pid 1 passes them on; any of those stops all.
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

/// A pipe for one word, which has both ends before a fork. Not a socket: every filter of these
/// processes lets read(2) and write(2) pass, and needs not let recvfrom(2) and sendto(2).
struct Pipe {
    reader: File,
    writer: File,
}

impl Pipe {
    fn new() -> Result<Self> {
        let (reader, writer) = sys::pipe_cloexec().map_err(host(step))?;
        Ok(Self {
            reader: reader.into(),
            writer: writer.into(),
        })
    }

    /// Says it. The other one may have been killed; this end to read with keeps SIGPIPE away.
    fn say(&mut self) {
        let _unheard = self.writer.write(&[0]);
    }

    /// Waits for the word; whether it came before the other one closed its end.
    fn hear(self) -> bool {
        let Self { mut reader, writer } = self;
        drop(writer);
        matches!(reader.read(&mut [0]), Ok(1))
    }
}

/// Whether the word is there.
fn has_word(reader: &mut File) -> bool {
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    polled == Ok(1) && matches!(reader.read(&mut [0]), Ok(1))
}

/// What joins the two until the program runs.
pub(crate) struct Line(Pipe);

impl Line {
    /// Says that the program could not be executed: no other try is made.
    pub(crate) fn failed(&mut self) {
        self.0.say();
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
    /// Of one that was let on: where it says that it could not be executed.
    line: Option<File>,
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
        let (mut let_on, failed) = (Pipe::new()?, Pipe::new()?);
        self.since = Instant::now();
        match sys::process::fork().map_err(host(step))? {
            Fork::Child => {
                if !let_on.hear() {
                    return Ok(Side::Stopped);
                }
                // Not before: what comes to the group from now on is for this process, too.
                self.before.thread_set_mask().map_err(host(step))?;
                Ok(Side::Forked(Line(failed)))
            }
            Fork::Parent(child) => {
                let Pipe { reader, writer } = failed;
                drop(writer);
                sys::watch(Child::adopt(child));
                self.child = Some(child);
                // One that came before the fork came to this process alone.
                self.take_signals();
                if self.stopped_by.is_none() {
                    let_on.say();
                    self.line = Some(reader);
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
        let line = self.line.take();
        line.is_some_and(|mut line| has_word(&mut line))
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
            match (&self.whose, self.child) {
                (Signals::First, Some(child)) => {
                    // ESRCH: it has just ended, which is seen next.
                    let _sent = kill_number(child, number);
                }
                (Signals::Group { .. }, Some(child)) if signal.ssi_pid == PID_ONE => {
                    pass_beyond_group(child, number);
                }
                _ => {}
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

/// Who passes on what the group of a program is to get. Others signal whom they mean, and `kill --all`
/// each process.
const PID_ONE: u32 = 1;

/// Passes a signal on to a program that has left this process's group (setsid(2)), and to its own group.
fn pass_beyond_group(program: Pid, signal: i32) {
    // ESRCH: it has just ended, which is seen next.
    let (Ok(theirs), Ok(ours)) = (getpgid(Some(program)), getpgid(None)) else {
        return;
    };
    // 1 is pid 1's, and its negative everybody.
    if theirs != ours && theirs.as_raw() > 1 {
        let _sent = kill_number(Pid::from_raw(-theirs.as_raw()), signal);
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

    /// The same ends once more, as a fork leaves them.
    fn forked(pipe: &Pipe) -> Pipe {
        Pipe {
            reader: pipe.reader.try_clone().unwrap(),
            writer: pipe.writer.try_clone().unwrap(),
        }
    }

    /// Has the calling thread refused these system calls (EPERM).
    fn refuse(calls: &[i64]) {
        const LOAD: u64 = 0x20;
        const JUMP_IF_EQUAL: u64 = 0x15;
        const RETURN: u64 = 0x06;
        const ALLOW: u64 = 0x7fff_0000;
        const EPERM: u64 = 0x0005_0001;
        let mut program = vec![LOAD];
        for call in calls {
            let call = u64::try_from(*call).unwrap();
            program.push(JUMP_IF_EQUAL | 1 << 24 | call << 32);
            program.push(RETURN | EPERM << 32);
        }
        program.push(RETURN | ALLOW << 32);
        sys::process::no_new_privs().unwrap();
        sys::process::load_seccomp(&program, 0).unwrap();
    }

    #[test]
    fn a_word_passes_where_a_filter_refuses_what_sockets_take() {
        use nix::libc::{SYS_ioctl, SYS_recvfrom, SYS_sendto, SYS_socketpair};
        let filtered = std::thread::spawn(|| {
            refuse(&[SYS_socketpair, SYS_sendto, SYS_recvfrom, SYS_ioctl]);
            let refused = std::os::unix::net::UnixStream::pair().is_err();
            let mut let_on = Pipe::new().unwrap();
            let theirs = forked(&let_on);
            let_on.say();
            drop(let_on);
            let let_on = theirs.hear();

            let given_up = Pipe::new().unwrap();
            let theirs = forked(&given_up);
            drop(given_up);
            let given_up = !theirs.hear();

            let failed = Pipe::new().unwrap();
            let mut line = Line(forked(&failed));
            let Pipe { mut reader, writer } = failed;
            drop(writer);
            let before = has_word(&mut reader);
            line.failed();
            let after = has_word(&mut reader);
            drop(line);
            (
                refused,
                let_on,
                given_up,
                before,
                after,
                has_word(&mut reader),
            )
        });
        let expected = (true, true, true, false, true, false);
        assert_eq!(filtered.join().unwrap(), expected);
    }

    #[test]
    fn a_program_that_has_left_the_group_is_signalled_and_another_is_not_twice() {
        let sleep = || sys::Spawn::new("/bin/sleep".as_ref()).args(["1000"]);
        let mut outside = sleep().new_session().spawn().unwrap();
        pass_beyond_group(outside.pid(), Signal::SIGTERM as i32);
        assert_eq!(outside.wait().unwrap(), ExitStatus::Signaled(15));
        let mut inside = sleep().spawn().unwrap();
        pass_beyond_group(inside.pid(), Signal::SIGTERM as i32);
        inside.kill(Signal::SIGKILL).unwrap();
        assert_eq!(inside.wait().unwrap(), ExitStatus::Signaled(9));
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
