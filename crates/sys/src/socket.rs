//! Stream sockets that carry descriptors and the sender's pid; must not frame messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, setsockopt, socketpair, sockopt,
};

/// Descriptors that one message can carry (SCM_MAX_FD), so that none is ever cut off.
const FDS_MAX: usize = 253;

/// Who sent a message, as the kernel saw it, in the namespaces of the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process; 0 when it is not visible from here.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Two connected unix stream sockets, close-on-exec.
pub fn socketpair_stream_cloexec() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// Makes the kernel add [`Credentials`] to everything received on `socket` from now on.
pub fn enable_passcred(socket: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&socket.as_fd(), sockopt::PassCred, &true)?)
}

/// Sends bytes with descriptors on the first of them; gives how many bytes went out.
///
/// A peer that is gone is EPIPE, never a signal.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[] } else { &rights[..] };
    Ok(sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &[IoSlice::new(bytes)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?)
}

/// Receives bytes, the descriptors (close-on-exec) and, after [`enable_passcred`], the sender.
///
/// 0 bytes: the peer has closed.
///
/// # Errors
/// ENOBUFS when our table of descriptors is full.
pub fn recv_with_fds(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>, Option<Credentials>)> {
    let mut control = nix::cmsg_space!([i32; FDS_MAX], libc::ucred);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    let mut credentials = None;
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmRights(numbers) => fds.extend(numbers.into_iter().map(own)),
            ControlMessageOwned::ScmCredentials(sender) => {
                credentials = Some(Credentials {
                    pid: sender.pid(),
                    uid: sender.uid(),
                    gid: sender.gid(),
                });
            }
            _ => {}
        }
    }
    Ok((message.bytes, fds, credentials))
}

/// A descriptor that the kernel has just put into our table.
fn own(fd: i32) -> OwnedFd {
    // SAFETY: SCM_RIGHTS hands over new descriptors, each listed once, that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_descriptors_and_sender_arrive() {
        let (ours, theirs) = socketpair_stream_cloexec().unwrap();
        enable_passcred(&theirs).unwrap();
        let (reader, writer) = crate::pipe_cloexec().unwrap();
        let sent = send_with_fds(&ours, b"hello", &[writer.as_fd(), ours.as_fd()]).unwrap();
        assert_eq!(sent, 5);
        drop(writer);

        let mut buffer = [0; 16];
        let (count, mut fds, sender) = recv_with_fds(&theirs, &mut buffer).unwrap();
        assert_eq!((&buffer[..count], fds.len()), (&b"hello"[..], 2));
        let sender = sender.unwrap();
        assert_eq!(sender.pid.unsigned_abs(), std::process::id());
        assert_eq!(sender.uid, 0, "tests run as root");
        for fd in &fds {
            let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, libc::FD_CLOEXEC);
        }
        File::from(fds.remove(0)).write_all(b"by the copy").unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "by the copy");
    }

    #[test]
    fn as_many_descriptors_arrive_as_one_message_takes() {
        let (ours, theirs) = socketpair_stream_cloexec().unwrap();
        // musl's sendmsg() has room for one less than the kernel.
        let many = vec![ours.as_fd(); FDS_MAX - 1];
        send_with_fds(&ours, b"x", &many).unwrap();
        let (_, fds, sender) = recv_with_fds(&theirs, &mut [0]).unwrap();
        assert_eq!(fds.len(), FDS_MAX - 1);
        assert_eq!(sender, None, "not asked for");
    }

    #[test]
    fn closed_peer_is_end_of_file_and_broken_pipe_without_a_signal() {
        let (ours, theirs) = socketpair_stream_cloexec().unwrap();
        drop(theirs);
        assert_eq!(recv_with_fds(&ours, &mut [0; 4]).unwrap().0, 0);
        let error = send_with_fds(&ours, b"x", &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    }
}
