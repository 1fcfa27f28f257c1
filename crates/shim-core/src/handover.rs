//! The strand between `start` and the shim it leaves behind. The shim gets its socket through it,
//! and learns by its end whether `start` came to an end: a shim whose `start` was killed is known
//! to nobody and goes at once, with its socket.
//!
//! ```text
//!   start: spawn ── bind ── listener ──> ... answer containerd ── done ──> exit
//!   shim:             receive, serve <──┘                  stay <──┘
//!          end of file before `done`: the socket is removed, the shim ends
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

/// Goes with the listener.
const LISTENER: u8 = b'l';
/// containerd has its answer.
const DONE: u8 = b'd';

/// What `start` holds.
#[derive(Debug)]
pub(crate) struct Strand(OwnedFd);

/// What a shim finds on its standard input.
#[derive(Debug)]
pub(crate) enum Received {
    /// Its socket, and the strand to follow.
    Listener(UnixListener, UnixStream),
    /// `start` was killed before it could bind, or before it could hand over.
    StarterDied,
    /// It was not started by `start`.
    NoStrand,
}

impl Strand {
    /// A strand, and the other end for the shim's standard input.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sys::socketpair_stream_cloexec()?;
        Ok((Self(ours), theirs))
    }

    /// Gives the shim its socket.
    pub(crate) fn give(&self, listener: &UnixListener) -> io::Result<()> {
        sys::send_with_fds(&self.0, &[LISTENER], &[listener.as_fd()]).map(drop)
    }

    /// Tells the shim that it is wanted.
    ///
    /// # Errors
    /// It has died already.
    pub(crate) fn done(self) -> io::Result<()> {
        sys::send_with_fds(&self.0, &[DONE], &[]).map(drop)
    }
}

/// Waits for what `start` gives, which is quick or dies, but not longer than `limit`.
pub(crate) fn receive(stdin: OwnedFd, limit: Duration) -> io::Result<Received> {
    let is = |e: &io::Error, errno: Errno| e.raw_os_error() == Some(errno as i32);
    match limit_receiving(&stdin, limit) {
        Err(e) if is(&e, Errno::ENOTSOCK) => return Ok(Received::NoStrand),
        limited => limited?,
    }
    let mut byte = [0];
    match sys::recv_with_fds(&stdin, &mut byte) {
        Err(e) if is(&e, Errno::EAGAIN) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "start lives and gave no socket within {} s",
                limit.as_secs()
            ),
        )),
        Err(e) => Err(e),
        Ok((1, mut descriptors, _)) if descriptors.len() == 1 && byte[0] == LISTENER => {
            let listener = UnixListener::from(descriptors.remove(0));
            Ok(Received::Listener(listener, UnixStream::from(stdin)))
        }
        Ok(_) => Ok(Received::StarterDied),
    }
}

fn limit_receiving(socket: &OwnedFd, limit: Duration) -> io::Result<()> {
    let seconds = limit.as_secs().try_into().unwrap_or(i64::MAX);
    let limit = TimeVal::new(seconds, limit.subsec_micros().into());
    Ok(setsockopt(socket, ReceiveTimeout, &limit)?)
}

/// Whether `start` came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// containerd knows this shim.
    Known,
    /// Nobody does.
    Forgotten,
}

/// Follows the strand to its end.
pub(crate) async fn outcome(strand: UnixStream) -> io::Result<Outcome> {
    use tokio::io::AsyncReadExt as _;
    strand.set_nonblocking(true)?;
    let mut strand = tokio::net::UnixStream::from_std(strand)?;
    let mut byte = [0];
    match strand.read(&mut byte).await {
        Ok(1) if byte[0] == DONE => Ok(Outcome::Known),
        _ => Ok(Outcome::Forgotten),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_hangs_is_waited_for_with_a_limit() {
        let (strand, theirs) = Strand::new().unwrap();
        let error = receive(theirs, Duration::from_millis(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "start lives and gave no socket within 0 s"
        );
        drop(strand);
    }

    #[test]
    fn a_shim_that_died_is_noticed_at_the_end_of_start() {
        let (strand, theirs) = Strand::new().unwrap();
        drop(theirs);
        assert_eq!(strand.done().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (strand, _theirs) = Strand::new().unwrap();
        strand.done().unwrap();
    }

    #[test]
    fn what_start_gives_or_its_death_is_received() {
        let limit = Duration::from_secs(20);
        let (strand, theirs) = Strand::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        strand.give(&listener).unwrap();
        let received = receive(theirs, limit).unwrap();
        assert!(matches!(received, Received::Listener(..)), "{received:?}");
        let (strand, theirs) = Strand::new().unwrap();
        drop(strand);
        let received = receive(theirs, limit).unwrap();
        assert!(matches!(received, Received::StarterDied), "{received:?}");
        let null = std::fs::File::open("/dev/null").unwrap();
        let received = receive(null.into(), limit).unwrap();
        assert!(matches!(received, Received::NoStrand), "{received:?}");
    }
}
