//! User namespaces without processes, for mounts that map ids; must not put anybody in one.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use crate::{fork, raw};

/// A user namespace with these maps (the texts of uid_map and gid_map, user_namespaces(7)).
///
/// # Errors
/// EPERM or EINVAL for maps that the kernel refuses, ENOSPC above `max_user_namespaces`, EINVAL
/// before 3.8 and where user namespaces are off.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    let (report, child_report) = crate::pipe_cloexec()?;
    let number = child_report.as_raw_fd();
    let parent = nix::unistd::getpid().as_raw();
    // Killed and reaped when it is dropped.
    let holder = fork::fork(&mut || hold(number, parent))?;
    drop(child_report);
    let mut errno = [0; 4];
    File::from(report).read_exact(&mut errno)?;
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let folder = PathBuf::from(format!("/proc/{}", holder.pid()));
    fs::write(folder.join("uid_map"), uid_map)?;
    fs::write(folder.join("gid_map"), gid_map)?;
    Ok(File::open(folder.join("ns/user"))?.into())
}

/// The child that keeps the namespace alive until it has a descriptor. It ends with its parent, and
/// holds nothing of that: a socket that it inherits would stay open when the parent is killed.
/// Async-signal-safe.
fn hold(report: RawFd, parent: libc::pid_t) -> Infallible {
    close_all_but(report);
    let kill = libc::c_ulong::from(libc::SIGKILL.unsigned_abs());
    // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, kill) };
    // SAFETY: getppid has no arguments and cannot fail.
    if unsafe { libc::getppid() } != parent {
        // The parent died before the call: no signal will come.
        // SAFETY: _exit runs no code of ours and does not return.
        unsafe { libc::_exit(1) };
    }
    // SAFETY: unshare takes a number and touches no memory of ours.
    let errno = match unsafe { libc::unshare(libc::CLONE_NEWUSER) } {
        0 => 0,
        _ => raw::errno(),
    };
    let record = errno.to_ne_bytes();
    // SAFETY: pointer and length describe `record`, which the call only reads.
    unsafe { libc::write(report, record.as_ptr().cast(), record.len()) };
    loop {
        // SAFETY: pause has no arguments; every signal but SIGKILL is blocked here.
        unsafe { libc::pause() };
    }
}

/// close_range(2) from kernel 5.9. Before that nothing is closed; who maps mounts, for which this
/// namespace is, needs 5.12. Async-signal-safe.
fn close_all_but(fd: RawFd) {
    let close = |first: libc::c_uint, last: libc::c_uint| {
        // SAFETY: what is closed belongs to the child alone, and nothing here uses it.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    let fd = fd.unsigned_abs();
    if fd > 0 {
        close(0, fd - 1);
    }
    close(fd + 1, libc::c_uint::MAX);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::ExitStatus;

    #[test]
    fn the_holder_has_no_descriptor_of_its_parent() {
        let (report, child_report) = crate::pipe_cloexec().unwrap();
        let (reader, writer) = crate::pipe_cloexec().unwrap();
        let (number, parent) = (child_report.as_raw_fd(), nix::unistd::getpid().as_raw());
        let holder = fork::fork(&mut || hold(number, parent)).unwrap();
        let mut errno = [0; 4];
        File::from(report).read_exact(&mut errno).unwrap();
        drop(writer);
        let mut ends = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::from(60_000_u16);
        assert_eq!(
            poll(&mut ends, limit),
            Ok(1),
            "somebody holds the other end"
        );
        assert!(fs::exists(format!("/proc/{}", holder.pid())).unwrap());
    }

    #[test]
    fn a_holder_whose_parent_has_died_ends() {
        let (_report, child_report) = crate::pipe_cloexec().unwrap();
        let number = child_report.as_raw_fd();
        let mut holder = fork::fork(&mut || hold(number, 0)).unwrap();
        assert_eq!(holder.wait().unwrap(), ExitStatus::Exited(1));
    }
}
