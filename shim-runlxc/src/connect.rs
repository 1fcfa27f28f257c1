//! Connections to unix sockets, within a limit: a listener that accepts nobody must not hold us.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Connects to the stream socket at `path`, waiting at most so long while its queue is full; what
/// is sent then waits no longer either.
///
/// # Errors
/// `TimedOut`, or what the kernel says.
pub(crate) fn within(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let milliseconds = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX / 1000);
    setsockopt(
        &socket,
        sockopt::SendTimeout,
        &TimeVal::milliseconds(milliseconds),
    )?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(socket),
        Err(Errno::EAGAIN) => Err(io::ErrorKind::TimedOut.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// As [`within`], to the socket of that name in a directory: by way of the directory's descriptor,
/// because the path of a socket has at most 107 bytes.
///
/// # Errors
/// As [`within`], or that the directory cannot be opened.
pub(crate) fn below(directory: &Path, name: &str, limit: Duration) -> io::Result<OwnedFd> {
    let directory = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    within(Path::new(&path), limit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{Backlog, listen};

    use super::*;

    #[test]
    fn a_listener_that_accepts_nobody_is_waited_for_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let limit = Duration::from_millis(20);
        let waiting: Vec<_> = (0..4).map(|_| within(&path, limit)).collect();
        assert!(waiting[0].is_ok());
        let last = waiting[3].as_ref().unwrap_err();
        assert_eq!(last.kind(), io::ErrorKind::TimedOut);
        drop((waiting, listener));
        let refused = within(&path, limit).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
