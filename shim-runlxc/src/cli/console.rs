//! `--console-socket`, `--pidfd-socket` and `--pid-file`: what a caller is told of a new process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::process::ProcessId;
use crate::{Error, Result, connect};

/// What runc sends along with the descriptor is a name; those who receive it only log it.
const NAME: &[u8] = b"/dev/ptmx";

/// The same for a pidfd.
const PIDFD_NAME: &[u8] = b"pidfd";

/// How long whoever listens on the socket may take to have room for us.
const LIMIT: Duration = Duration::from_secs(10);

/// Sends the master of a terminal to whoever listens on the socket.
pub(crate) fn send(socket: &Path, terminal: &OwnedFd) -> Result<()> {
    let stream =
        connect::within(socket, LIMIT).map_err(Error::on("connect to console socket", socket))?;
    sys::send_with_fds(&stream, NAME, &[terminal.as_fd()])
        .map_err(Error::on("send a terminal to", socket))?;
    Ok(())
}

/// Sends a pidfd of this process and no other: an init that waits for our word may be killed
/// meanwhile, and its number be another's.
pub(crate) fn send_pidfd(socket: &Path, process: ProcessId) -> Result<()> {
    let pidfd = process.pidfd()?;
    let stream =
        connect::within(socket, LIMIT).map_err(Error::on("connect to pidfd socket", socket))?;
    sys::send_with_fds(&stream, PIDFD_NAME, &[pidfd.as_fd()])
        .map_err(Error::on("send a pidfd to", socket))?;
    Ok(())
}

/// Writes a pid; the file is there whole or not at all.
pub(crate) fn write_pid(file: &Path, pid: i32) -> Result<()> {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    std::fs::write(temporary, pid.to_string()).map_err(Error::on("write", temporary))?;
    std::fs::rename(temporary, file).map_err(Error::on("rename to", file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn no_pidfd_is_sent_but_that_of_the_process_that_was_meant() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let own = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        send_pidfd(&path, own).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut name = [0; 16];
        let (count, fds, _) = sys::recv_with_fds(&stream, &mut name).unwrap();
        assert_eq!((&name[..count], fds.len()), (PIDFD_NAME, 1));
        // Its number is another's by now.
        let gone = ProcessId {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(matches!(send_pidfd(&path, gone), Err(Error::NotRunning)));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    }
}
