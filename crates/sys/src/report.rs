//! What a child reports between its fork and its execve: which step failed, or nothing; must not make the child.

use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::child::Child;

/// A step of the child that can fail, by the number it has in the record.
const STEPS: [&str; 13] = [
    "execve",
    "prctl(PR_SET_PDEATHSIG)",
    "setsid",
    "move descriptors",
    "setns",
    "unshare",
    "chdir",
    "set up signals",
    "change the AppArmor profile",
    "set clocks off",
    "become the user",
    "enter its cgroups",
    "setrlimit(RLIMIT_FSIZE)",
];
pub(crate) const EXECVE: u8 = 0;
pub(crate) const PDEATHSIG: u8 = 1;
pub(crate) const SETSID: u8 = 2;
pub(crate) const MOVE_FDS: u8 = 3;
pub(crate) const SETNS: u8 = 4;
pub(crate) const UNSHARE: u8 = 5;
pub(crate) const CHDIR: u8 = 6;
pub(crate) const SIGNALS: u8 = 7;
pub(crate) const PROFILE: u8 = 8;
pub(crate) const CLOCKS: u8 = 9;
pub(crate) const USER: u8 = 10;
pub(crate) const CGROUPS: u8 = 11;
pub(crate) const FILE_LIMIT: u8 = 12;

/// Step number and errno.
pub(crate) const RECORD_BYTES: usize = 5;

/// For so long a child in a cgroup may take to become its program, where there is another place for it. In a frozen
/// one it never does, and meanwhile it holds copies of all our descriptors, those that other threads wait for too.
pub(crate) const BIRTH_LIMIT: Duration = Duration::from_secs(1);

/// As [`BIRTH_LIMIT`], where there is no other place: longer, for a busy host or a cgroup with little of one.
const ENTRY_LIMIT: Duration = Duration::from_secs(5);

/// Waits until the child, which enters cgroups by itself, reports or becomes the program, but not for ever.
pub(crate) fn running_soon(report: BorrowedFd<'_>) -> io::Result<()> {
    readable_within(report, ENTRY_LIMIT).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "it does not run in its cgroups within {} s: one of them, or one above, may be frozen; thaw it",
                ENTRY_LIMIT.as_secs()
            ),
        ),
        _ => error,
    })
}

/// Waits until the child reports or becomes the program, but not longer than `limit`.
pub(crate) fn readable_within(report: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(report, PollFlags::POLLIN)], left) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether nobody can read what the child reports: who made it is dead. Other children that were forked meanwhile
/// have copies of the pipe's ends until their execve, so it may be found late. Async-signal-safe.
pub(crate) fn has_no_reader(report: RawFd) -> bool {
    let mut pipe = libc::pollfd {
        fd: report,
        events: 0,
        revents: 0,
    };
    // SAFETY: pointer and count describe `pipe`; the call waits for nothing.
    let found = unsafe { libc::poll(&raw mut pipe, 1, 0) };
    found > 0 && pipe.revents & libc::POLLERR != 0
}

/// Reads what the child reports: nothing when execve closed the pipe.
pub(crate) fn read_record(report: &mut OwnedFd, record: &mut [u8]) -> io::Result<usize> {
    let mut report = std::fs::File::from(report.try_clone()?);
    loop {
        match report.read(record) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Reaps a child that exits without having become the program, and tells why.
pub(crate) fn reap_failed(mut child: Child, [step, errno @ ..]: [u8; RECORD_BYTES]) -> io::Error {
    // Its status says no more than the record does.
    let _status = child.wait();
    let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
    if step == EXECVE {
        return error;
    }
    io::Error::new(
        error.kind(),
        FailedStep {
            step: STEPS.get(usize::from(step)).copied().unwrap_or("?"),
            source: error,
        },
    )
}

/// A step before execve that failed in the child.
#[derive(Debug, thiserror::Error)]
#[error("{step} in the new process")]
struct FailedStep {
    step: &'static str,
    source: io::Error,
}
