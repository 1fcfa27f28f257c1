//! Pid 1 that stays while the container's program runs as its child.
//!
//! ```text
//!   pid 1, all set up --- fork ---> child: session, terminal, user's rights, program found
//!     | descriptors, rights, filter             |
//!     |------------- goes ahead --------------->| Ready, Start, execve
//!     |<------------- SIGCHLD ------------------|
//!     |  orphans are dropped; the end of the child is its own end, with the same status
//!     |
//!     |<- any other signal: for the child's process group, or that in the terminal's foreground
//! ```
//! It keeps nothing of the host, and of all rights that to signal any process of its namespace, unless
//! it has to start further processes for want of setns(2) (`agent.rs`). It must not execute anything.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::setsid;
use sys::process::{Fork, kill_number};
use sys::{Child, ExitStatus, Pid};

use crate::agent::{self, Agent, Newcomer};
use crate::devices;
use crate::error::{Result, host};
use crate::labels;
use crate::plan::{Process, Rewrite};
use crate::process;
use crate::procfs::Proc;

/// What a terminal sends to those in its foreground.
const OF_TERMINALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];

/// Which process goes on after the fork.
pub(crate) enum Side {
    /// Pid 1.
    Parent(Reaper),
    /// The process that is to become the program.
    Child(Gate),
}

/// What pid 1 has beside the program.
#[derive(Default)]
pub(crate) struct Beside {
    /// The process that services have for a parent.
    pub(crate) supervisor: Option<Pid>,
    /// What starts further processes.
    pub(crate) agent: Option<Agent>,
}

/// Holds the child until pid 1 is ready for it.
pub(crate) struct Gate(OwnedFd);

/// What the gate's other end said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Pid 1 is ready.
    Open,
    /// Pid 1 has ended, and this process is about to.
    Closed,
}

impl Gate {
    /// Waits for pid 1.
    pub(crate) fn wait(self) -> Passage {
        match std::fs::File::from(self.0).read(&mut [0]) {
            Ok(1) => Passage::Open,
            _ => Passage::Closed,
        }
    }
}

/// Pid 1 with a child that waits at the gate. All signals are blocked, so that none is lost.
pub(crate) struct Reaper {
    child: Pid,
    gate: OwnedFd,
}

/// Forks; the child is as this process was.
pub(crate) fn fork() -> Result<Side> {
    let step = || "fork the process of the program".to_owned();
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(host(step))?;
    let (waiting, gate) = sys::pipe_cloexec().map_err(host(step))?;
    match sys::process::fork().map_err(host(step))? {
        Fork::Parent(child) => Ok(Side::Parent(Reaper { child, gate })),
        Fork::Child => {
            before.thread_set_mask().map_err(host(step))?;
            // For a terminal, and so that signals for the program reach all of its group.
            setsid().map_err(host(step))?;
            Ok(Side::Child(Gate(waiting)))
        }
    }
}

impl Reaper {
    /// Gives up what only the program shall have, then lets the child go ahead.
    ///
    /// The filter is the program's: it is what the container is allowed, and a root in there who
    /// may trace pid 1 would else have a way around it.
    /// With an agent it keeps what the processes that the agent starts may be given.
    pub(crate) fn settle(self, plan: &Process, proc: &Proc, beside: Beside) -> Result<Settled> {
        let step = || "wait for signals".to_owned();
        let Beside { supervisor, agent } = beside;
        for number in 3..process::first_unwanted_fd(plan) {
            // EBADF: nothing was passed under that number.
            drop(sys::take_inherited_fd(number));
        }
        devices::all_streams_to_null()?;
        let signals =
            SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC).map_err(host(step))?;
        sys::watch(Child::adopt(self.child));
        if let Some(supervisor) = supervisor {
            sys::watch(Child::adopt(supervisor));
        }
        labels::change_now(proc, &plan.labels)?;
        match agent {
            Some(_) => process::keep_rights_of_container(plan)?,
            None => process::keep_right_to_signal(plan)?,
        }
        std::fs::File::from(self.gate)
            .write_all(&[0])
            .map_err(host(step))?;
        Ok(Settled {
            child: self.child,
            supervisor,
            signals,
            has_terminal: plan.terminal.is_some(),
            agent,
        })
    }
}

/// Pid 1 at its work.
pub(crate) struct Settled {
    child: Pid,
    /// Of services; none: there are none, or it has ended.
    supervisor: Option<Pid>,
    signals: SignalFd,
    has_terminal: bool,
    agent: Option<Agent>,
}

/// What pid 1's work ended with.
pub(crate) enum Outcome {
    /// The end of the program.
    Ended(ExitStatus),
    /// In a process that is not pid 1: it is to become another program.
    Joins(Newcomer),
}

impl Settled {
    /// Reaps, passes signals on and starts processes until the child has ended, then has services
    /// stopped.
    pub(crate) fn run(mut self, rewrites: &[Rewrite]) -> Result<Outcome> {
        let status = loop {
            if self.wait()? == Came::Connection
                && let Some(agent) = self.agent.take()
            {
                match agent.accept()? {
                    agent::Side::Parent(agent) => self.agent = Some(agent),
                    agent::Side::Child(newcomer) => return Ok(Outcome::Joins(newcomer)),
                }
                continue;
            }
            match self.next_signal()? {
                Some(signal) => {
                    if let Some(signal) = rewritten(rewrites, signal) {
                        self.pass_on(signal);
                    }
                }
                None => {
                    if let Some(status) = self.reap() {
                        break status;
                    }
                }
            }
        };
        if let Some(supervisor) = self.supervisor {
            // It lives, or is about to be reaped.
            let _ended = kill_number(supervisor, Signal::SIGTERM as i32);
        }
        while self.supervisor.is_some() {
            if self.next_signal()?.is_none() {
                self.reap();
            }
        }
        Ok(Outcome::Ended(status))
    }

    /// The next signal that is not about children; none: some child has ended.
    fn next_signal(&self) -> Result<Option<i32>> {
        loop {
            let signal = match self.signals.read_signal() {
                Ok(Some(signal)) => i32::try_from(signal.ssi_signo).unwrap_or_default(),
                Ok(None) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(host(|| "wait for signals".to_owned())(errno)),
            };
            return Ok((signal != Signal::SIGCHLD as i32).then_some(signal));
        }
    }

    /// Waits for a signal, or for somebody who connects when none is there.
    fn wait(&self) -> Result<Came> {
        let Some(agent) = &self.agent else {
            return Ok(Came::Signal); // Reading it waits.
        };
        let mut fds = [self.signals.as_fd(), agent.listener().as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) if fds[0].any().unwrap_or_default() => return Ok(Came::Signal),
                Ok(_) => return Ok(Came::Connection),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(host(|| "wait for signals".to_owned())(errno)),
            }
        }
    }

    /// Reaps all that have ended; gives how the program has, if it has.
    fn reap(&mut self) -> Option<ExitStatus> {
        let mut of_program = None;
        for (pid, status) in sys::reap() {
            if pid == self.child {
                of_program = Some(status);
            } else if Some(pid) == self.supervisor {
                self.supervisor = None;
            } else if let Some(agent) = &mut self.agent {
                agent.ended(pid, status);
            }
        }
        of_program
    }

    /// To a whole group, as dumb-init does: a shell that is the program does not pass it on.
    fn pass_on(&self, signal: i32) {
        let of_terminals = OF_TERMINALS.iter().any(|&other| other as i32 == signal);
        let foreground = if self.has_terminal && of_terminals {
            foreground_group(self.child)
        } else {
            None
        };
        let group = foreground.unwrap_or(self.child.as_raw());
        let missing = |sent: io::Result<()>| {
            sent.is_err_and(|error| error.raw_os_error() == Some(Errno::ESRCH as i32))
        };
        if missing(kill_number(Pid::from_raw(-group), signal)) {
            // It has no group of its own yet. One that has ended is about to be reaped.
            let _ended = kill_number(self.child, signal);
        }
    }
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Signal,
    Connection,
}

/// What becomes of a signal; none: nothing. The first that fits counts.
pub(crate) fn rewritten(rewrites: &[Rewrite], signal: i32) -> Option<i32> {
    let found = rewrites.iter().find(|rewrite| rewrite.from == signal);
    found.map_or(Some(signal), |rewrite| rewrite.to)
}

/// The foreground group of the terminal of a process, as the container's procfs tells it: only
/// the container itself could lie about it, and it can signal its processes anyway. What it may
/// have put there instead is neither waited for nor read to its end.
fn foreground_group(process: Pid) -> Option<i32> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(OPEN_WITHOUT_WAITING);
    let mut file = options.open(format!("/proc/{process}/stat")).ok()?;
    let mut stat = [0; STAT_BYTES_MAX];
    let length = file.read(&mut stat).ok()?;
    parse_foreground_group(stat.get(..length)?)
}

const OPEN_WITHOUT_WAITING: i32 = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY).bits();

/// A line of proc(5) has 52 fields, of which one is a name of 64 bytes at most.
const STAT_BYTES_MAX: usize = 2048;

/// Field 8 of proc(5), after a name in parentheses that may hold anything. Groups below 2 mean
/// none, everybody, and pid 1 itself.
fn parse_foreground_group(stat: &[u8]) -> Option<i32> {
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    let group = rest.split_ascii_whitespace().nth(5)?.parse().ok()?;
    Some(group).filter(|group| *group > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rewrite_that_fits_counts() {
        let rewrites = [(15, Some(3)), (1, None), (15, Some(9))]
            .map(|(from, to)| Rewrite { from, to })
            .to_vec();
        for (signal, expected) in [(15, Some(3)), (1, None), (2, Some(2)), (3, Some(3))] {
            assert_eq!(rewritten(&rewrites, signal), expected, "{signal}");
        }
        assert_eq!(rewritten(&[], 34), Some(34));
    }

    #[test]
    fn the_foreground_group_is_read_past_any_name() {
        let stat = |group: &str| format!("2 (a) S 1 (b)) S 1 2 2 34816 {group} 4194304 91");
        let parse = |group: &str| parse_foreground_group(stat(group).as_bytes());
        assert_eq!(parse("17"), Some(17));
        for none in ["-1", "0", "1", "x"] {
            assert_eq!(parse(none), None, "{none}");
        }
        assert_eq!(parse_foreground_group(b"2 (a) S 1"), None);
        assert_eq!(parse_foreground_group(b""), None);
    }
}
