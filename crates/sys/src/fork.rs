//! The fork itself, in its forms: with signals blocked and the table of children locked. What the child does is its
//! caller's, who may call async-signal-safe functions only.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::Pid;

use crate::child::{self, Child};
use crate::raw;

/// Forks with all signals blocked, so that no handler of ours runs in the child, and with the
/// table of children locked, so that nobody reaps it before it is entered.
///
/// `run` is the child; it may call async-signal-safe functions only.
pub(crate) fn fork(run: &mut dyn FnMut() -> Infallible) -> io::Result<Child> {
    // SAFETY: the child calls only async-signal-safe functions until execve or its end.
    fork_by(|| unsafe { libc::fork() }.into(), run)
}

/// As [`fork`], by clone(2) with these flags.
pub(crate) fn clone_with(
    flags: CloneFlags,
    run: &mut dyn FnMut() -> Infallible,
) -> io::Result<Child> {
    let flags = libc::c_long::from(flags.bits() | libc::SIGCHLD);
    // SAFETY: without a stack and CLONE_VM the child has its own copy of this one, whatever the order of the
    // other arguments, which are all 0; it calls only async-signal-safe functions until execve or its end.
    fork_by(
        || unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) },
        run,
    )
}

/// As [`clone_with`], by clone3(2) with CLONE_INTO_CGROUP (Linux 5.7).
pub(crate) fn clone_into(
    directory: BorrowedFd<'_>,
    flags: CloneFlags,
    run: &mut dyn FnMut() -> Infallible,
) -> io::Result<Child> {
    // SAFETY: all zero bytes are valid: a structure of numbers, in which 0 asks for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP | u64::from(flags.bits().unsigned_abs());
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::from(directory.as_raw_fd().unsigned_abs());
    let bytes = size_of_val(&arguments);
    // SAFETY: pointer and size describe `arguments`, which the call only reads. Without CLONE_VM
    // the child has its own copy of this stack, and it calls only async-signal-safe functions until
    // execve or its end.
    fork_by(
        || unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, bytes) },
        run,
    )
}

/// linux/sched.h; libc has it with a type of 32 bits, which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn fork_by(
    call: impl FnOnce() -> libc::c_long,
    run: &mut dyn FnMut() -> Infallible,
) -> io::Result<Child> {
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    let mut table = child::table();
    let result = call();
    if result == 0 {
        run();
    }
    let child = raw::value(result).map(|pid| table.enter(Pid::from_raw(pid)));
    drop(table);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    child
}
