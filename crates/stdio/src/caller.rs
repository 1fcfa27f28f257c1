//! The caller's own streams, for a command that stays with a process: bytes one way, and its terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use nix::unistd::{read, write};
use sys::pty::{self, WindowSize};

/// Bytes on their way in one direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// One direction: read when empty, written when not.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: Vec<u8>,
    ended: bool,
}

impl Flow {
    /// Whether there is something to wait for at its source.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.bytes.is_empty() && !self.ended
    }

    /// Whether there is something to write.
    #[must_use]
    pub fn has_some(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Whether nothing comes any more, and all that came was written.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.bytes.is_empty() && self.ended
    }

    /// Reads once. EIO on a master says that nobody has the slave any more.
    pub fn fill(&mut self, from: BorrowedFd<'_>) {
        if !self.wants_more() {
            return;
        }
        let mut buffer = [0; BUFFER_BYTES];
        match read(from, &mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_errno) => self.ended = true,
        }
    }

    /// Writes as much as fits; what nobody reads any more is dropped.
    pub fn empty_into(&mut self, to: BorrowedFd<'_>) {
        while self.has_some() {
            match write(to, &self.bytes) {
                Ok(count) => drop(self.bytes.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_errno) => {
                    self.bytes.clear();
                    self.ended = true;
                }
            }
        }
    }
}

/// Whether reading gives something, or the end, at once.
#[must_use]
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
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
