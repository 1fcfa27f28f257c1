//! The caller's own streams, for a command that stays with a process: bytes one way, and its terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use nix::unistd::{read, write};
use sys::pty::{self, WindowSize};

/// Bytes on their way in one direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// One direction: read when empty, written when not.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: Vec<u8>,
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Its source is at its end.
    Ended,
    /// Nobody takes what it writes.
    Broken,
}

impl Flow {
    /// Whether there is something to wait for at its source.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.bytes.is_empty() && self.state == State::Open
    }

    /// Whether there is something to write.
    #[must_use]
    pub fn has_some(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Whether nothing comes any more, and all that came was written or nobody takes it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.bytes.is_empty() && self.state != State::Open
    }

    /// Whether nobody takes what it writes, which says nothing of its source.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Reads once what is there. EIO on a master says that nobody has the slave any more.
    pub fn fill(&mut self, from: BorrowedFd<'_>) {
        if !self.wants_more() || !is_readable(from) {
            return;
        }
        let mut buffer = [0; BUFFER_BYTES];
        match read(from, &mut buffer) {
            Ok(0) => self.state = State::Ended,
            Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_errno) => self.state = State::Ended,
        }
    }

    /// Writes as much as is taken at once; what nobody takes any more is dropped.
    pub fn empty_into(&mut self, to: BorrowedFd<'_>) {
        // The caller's streams may block, which nobody but the caller can change: a pipe that says that it takes
        // something takes so much (pipe(7), PIPE_BUF).
        while self.has_some() && is_ready(to, PollFlags::POLLOUT) {
            let count = self.bytes.len().min(PIPE_BUF);
            match write(to, &self.bytes[..count]) {
                Ok(count) => drop(self.bytes.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_errno) => {
                    self.bytes.clear();
                    self.state = State::Broken;
                }
            }
        }
    }
}

/// Whether reading gives something, or the end, at once.
#[must_use]
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    is_ready(fd, PollFlags::POLLIN)
}

fn is_ready(fd: BorrowedFd<'_>, event: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, event)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// All signals of this thread and of those that it makes from now on, to be read.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take() -> io::Result<Self> {
        let mask = SigSet::all();
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&mask, flags)?))
    }

    /// The next one to be passed on. SIGCHLD is ours, and writes tell of broken pipes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&self) -> io::Result<Option<i32>> {
        loop {
            let number = match self.0.read_signal() {
                Ok(Some(info)) => i32::try_from(info.ssi_signo).unwrap_or_default(),
                Ok(None) | Err(Errno::EINTR) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            if ![Signal::SIGCHLD as i32, Signal::SIGPIPE as i32].contains(&number) {
                return Ok(Some(number));
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The caller's terminal in raw mode but for its output; as it was when this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// None when no standard stream is a terminal.
    ///
    /// # Errors
    /// What the kernel says of the terminal.
    pub fn of_caller() -> io::Result<Option<Self>> {
        let streams = (io::stdin(), io::stdout(), io::stderr());
        let found = [streams.2.as_fd(), streams.1.as_fd(), streams.0.as_fd()]
            .into_iter()
            .find_map(|stream| Some((stream, termios::tcgetattr(stream).ok()?)));
        let Some((stream, before)) = found else {
            return Ok(None);
        };
        let terminal = nix::unistd::dup(stream)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        raw.output_flags |= before.output_flags & OutputFlags::OPOST;
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { terminal, before }))
    }

    /// Its size.
    ///
    /// # Errors
    /// What the kernel says of the terminal.
    pub fn size(&self) -> io::Result<WindowSize> {
        pty::window_size(&self.terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone; there is nothing to restore then.
        let _gone = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    /// One that has read so many bytes, and the pipe that it is to write to.
    fn filled(bytes: usize) -> (Flow, OwnedFd, OwnedFd) {
        let (reader, writer) = sys::pipe_cloexec().unwrap();
        write(&writer, &vec![b'x'; bytes]).unwrap();
        let mut flow = Flow::default();
        flow.fill(reader.as_fd());
        assert!(flow.has_some() && !flow.wants_more());
        let (reader, writer) = sys::pipe_cloexec().unwrap();
        (flow, reader, writer)
    }

    #[test]
    fn a_pipe_that_is_full_holds_nobody_up() {
        let (mut flow, reader, writer) = filled(BUFFER_BYTES);
        let mut bytes = 0;
        // It blocks; with nobody who reads, it would for ever.
        while is_ready(writer.as_fd(), PollFlags::POLLOUT) {
            bytes += write(&writer, &[b'-'; PIPE_BUF]).unwrap();
        }
        flow.empty_into(writer.as_fd());
        assert!(flow.has_some() && !flow.is_over());
        let mut reader = File::from(reader);
        let mut taken = vec![0; bytes];
        reader.read_exact(&mut taken).unwrap();
        flow.empty_into(writer.as_fd());
        assert!(flow.wants_more());
        drop(writer);
        assert_eq!(reader.read_to_end(&mut taken).unwrap(), BUFFER_BYTES);
    }

    #[test]
    fn who_does_not_take_it_is_told_from_the_end_of_the_source() {
        let (mut flow, reader, writer) = filled(1);
        drop(reader);
        flow.empty_into(writer.as_fd());
        assert!(flow.is_over() && flow.is_broken());
        let (mut flow, reader, writer) = filled(1);
        flow.empty_into(writer.as_fd());
        drop(writer);
        let mut byte = [0];
        assert_eq!(read(&reader, &mut byte).unwrap(), 1);
        flow.fill(reader.as_fd());
        assert!(flow.is_over() && !flow.is_broken());
    }
}
