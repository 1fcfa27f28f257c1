//! The wait for the start: on a socket for whoever may connect, and on signals.
//!
//! Must not let one connection keep the others from starting.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::control::{self, FromStub, Limit, Received, ToStub};
use crate::error::{Error, Result, host};

/// From the first byte of a question, which is some five bytes long, to the last.
const QUESTION_LIMIT: Duration = Duration::from_secs(1);

/// How many may be connected and silent; the oldest has to go then.
const CONNECTIONS_MAX: usize = 16;

/// What ends a program that does not care for it (signal(7)). The kernel keeps all of them from a
/// pid 1 without handlers, so that `kill` would do nothing to a container that was not started.
const DEADLY: [Signal; 12] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGSTKFLT,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];

/// What the wait ended with.
#[derive(Debug)]
pub(crate) enum Word {
    /// The connection that asked for the start.
    Start(UnixStream),
    /// A signal that would have ended any other process.
    Signal(i32),
}

/// Waits for the word; leaves the deadly signals blocked.
///
/// All other connections are closed. Whoever has asked for the start too gets ECONNRESET, since its
/// question was not read, and whoever asks only then gets EPIPE: neither can take it for the
/// success that a mere end of file means.
pub(crate) fn wait(listener: OwnedFd) -> Result<Word> {
    let listener = UnixListener::from(listener);
    let signals = deadly_signals().map_err(host(|| "wait for signals".to_owned()))?;
    let mut silent = Vec::new();
    loop {
        let ready = wait_for_any(&listener, &signals, &silent)?;
        if ready[1]
            && let Ok(Some(signal)) = signals.read_signal()
        {
            return Ok(Word::Signal(i32::try_from(signal.ssi_signo).unwrap_or(0)));
        }
        let (speaking, others) = split(silent, &ready[2..]);
        silent = others;
        if let Some(start) = speaking.into_iter().find(asks) {
            return Ok(Word::Start(start));
        }
        if ready[0] {
            silent.extend(accept(&listener)?);
        }
        if silent.len() > CONNECTIONS_MAX {
            drop(silent.remove(0));
        }
    }
}

/// A deadly signal that has come since [`wait`], which leaves them blocked.
pub(crate) fn signal_meanwhile() -> Option<i32> {
    let signal = deadly_signals().ok()?.read_signal().ok()??;
    i32::try_from(signal.ssi_signo).ok()
}

fn deadly_signals() -> nix::Result<SignalFd> {
    let deadly: SigSet = DEADLY.into_iter().collect();
    deadly.thread_block()?;
    SignalFd::with_flags(&deadly, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn accept(listener: &UnixListener) -> Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((connection, _)) => Ok(Some(connection)),
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(None),
        Err(source) => Err(Error::Socket {
            what: "accept",
            source,
        }),
    }
}

/// Which of the listener, the signals and the connections have something to tell.
fn wait_for_any(
    listener: &UnixListener,
    signals: &SignalFd,
    connections: &[UnixStream],
) -> Result<Vec<bool>> {
    let fixed = [listener.as_fd(), signals.as_fd()];
    let all = fixed.into_iter().chain(connections.iter().map(AsFd::as_fd));
    let mut all: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut all, PollTimeout::NONE) {
        Ok(_) => Ok(all.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        Err(Errno::EINTR) => Ok(vec![false; all.len()]),
        Err(errno) => Err(host(|| "wait for the start".to_owned())(errno)),
    }
}

fn split(all: Vec<UnixStream>, ready: &[bool]) -> (Vec<UnixStream>, Vec<UnixStream>) {
    let (speaking, silent): (Vec<_>, Vec<_>) =
        all.into_iter().zip(ready).partition(|(_, ready)| **ready);
    let streams = |pairs: Vec<(UnixStream, &bool)>| pairs.into_iter().map(|pair| pair.0).collect();
    (streams(speaking), streams(silent))
}

/// Whether a connection asks for the start. One that ended without a word needs no answer; one that
/// asks for something else gets one.
fn asks(connection: &UnixStream) -> bool {
    match question(connection) {
        Ok(Some(received)) if received.message == ToStub::Start => return true,
        Ok(None) => {}
        Ok(Some(_)) | Err(_) => {
            let failure = Error::Unexpected("instead of a start").failure();
            // Whoever has gone does not wait for it.
            let _gone = control::send(connection, &FromStub::Failed(failure), &[]);
        }
    }
    false
}

/// What a connection that has begun to speak says. Who says it more slowly is not waited for.
fn question(connection: &UnixStream) -> Result<Option<Received<ToStub>>> {
    let set = |nonblocking| {
        connection
            .set_nonblocking(nonblocking)
            .map_err(host(|| "set up a connection".to_owned()))
    };
    set(true)?;
    let limit = Limit::Until(Instant::now() + QUESTION_LIMIT);
    let received = control::recv_within(connection, limit);
    set(false)?;
    received
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn answer(connection: &UnixStream) -> Result<Option<String>> {
        connection
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let received = control::recv::<FromStub>(connection)?;
        Ok(received.map(|received| match received.message {
            FromStub::Failed(failure) => failure.to_string(),
            other => panic!("{other:?}"),
        }))
    }

    fn errno(result: Result<impl std::fmt::Debug>) -> Errno {
        Errno::from_raw(result.unwrap_err().failure().errno)
    }

    #[test]
    fn a_signal_of_after_the_word_is_seen_and_of_others_none() {
        let seen = std::thread::spawn(|| {
            let before = signal_meanwhile();
            nix::sys::signal::raise(Signal::SIGTERM).unwrap();
            (before, signal_meanwhile(), signal_meanwhile())
        });
        assert_eq!(seen.join().unwrap(), (None, Some(15), None));
    }

    #[test]
    fn one_start_starts_and_nobody_else_takes_that_for_a_success() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let connect = || UnixStream::connect(&path).unwrap();
        let ask = |connection: &UnixStream| control::send(connection, &ToStub::Start, &[]);
        let silent = connect();
        drop(connect());
        let mut garbage = connect();
        garbage.write_all(&[0xff; 64]).unwrap();
        let mut cut_off = connect();
        cut_off.write_all(&[9, 0, 0, 0, 1]).unwrap();
        drop(cut_off);
        let mut stuck = connect();
        stuck.write_all(&[9, 0]).unwrap();
        let crowd: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect()).collect();
        let (start, late) = (connect(), connect());
        ask(&start).unwrap();
        ask(&late).unwrap();

        let Word::Start(taken) = wait(listener.into()).unwrap() else {
            panic!("nobody sends signals")
        };
        let unexpected = "unexpected control message instead of a start";
        assert_eq!(answer(&garbage).unwrap().as_deref(), Some(unexpected));
        assert_eq!(errno(answer(&late)), Errno::ECONNRESET);
        assert_eq!(errno(ask(&silent)), Errno::EPIPE);
        assert_eq!(errno(ask(&crowd[0])), Errno::EPIPE);
        drop(taken);
        assert_eq!(answer(&start).unwrap(), None);
        assert!(UnixStream::connect(&path).is_err());
    }
}
