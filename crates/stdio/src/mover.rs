//! One move of bytes from one non-blocking descriptor to another. Never waits.
//!
//! Large amounts go by splice(2), which moves pages without copying. Small ones are copied: a
//! spliced line takes one of the sixteen slots of a fifo for itself, so that a reader who comes
//! late would find sixteen lines; copied lines share pages, and 64 KiB wait for him.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use crate::place::LogFile;

/// Bytes copied at once, on the stack: a write that long to a pipe happens whole or not at all.
const COPY_BYTES: usize = 4096;
/// Bytes asked of one splice: more than the default pipe holds, less than would hold up others.
const SPLICE_BYTES: usize = 1 << 20;
/// Buffer for files, on a thread that may block, while there is something to write.
const FILE_BYTES: usize = 64 << 10;
/// Bytes written to a file before others get the thread.
const FILE_BURST_BYTES: usize = 1 << 20;

/// How a move went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something was moved; there may be more.
    Moved,
    /// The source has nothing now.
    SourceEmpty,
    /// The sink takes nothing now.
    SinkFull,
    /// The source has ended and all of it was moved.
    End,
    /// The source is a terminal that nobody has open.
    HungUp,
    /// Nobody reads the sink any more.
    SinkBroken,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By copying only: one of the two is no pipe, or splice(2) does not work here.
    Copy,
    /// By copying, until there is much.
    Small,
    /// By splice(2), until the source is empty.
    Bulk,
}

/// Moves bytes from a pipe, a fifo or a terminal to another.
#[derive(Debug)]
pub(crate) struct Mover {
    way: Way,
    /// Read, but not taken by the sink yet; without memory most of the time.
    pending: Vec<u8>,
    /// The last byte read by copying.
    last: Option<u8>,
}

impl Mover {
    /// Between two pipes.
    pub(crate) fn between_pipes() -> Self {
        Self::new(Way::Small)
    }

    /// From or to a terminal.
    pub(crate) fn with_terminal() -> Self {
        Self::new(Way::Copy)
    }

    fn new(way: Way) -> Self {
        Self {
            way,
            pending: Vec::new(),
            last: None,
        }
    }

    /// The last byte that came from a source that is copied only.
    pub(crate) fn last(&self) -> Option<u8> {
        self.last
    }

    /// Moves some bytes.
    pub(crate) fn step(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> Step {
        if !self.pending.is_empty() {
            return self.flush(sink);
        }
        if self.way == Way::Bulk
            && let Some(step) = self.splice(source, sink)
        {
            return step;
        }
        self.copy(source, sink)
    }

    fn copy(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> Step {
        let mut buffer = [0; COPY_BYTES];
        let count = match fill(source, &mut buffer) {
            Ok(count) => count,
            Err(step) => return step,
        };
        if self.way == Way::Small && count == COPY_BYTES {
            self.way = Way::Bulk;
        }
        self.last = buffer[..count].last().copied();
        match write(sink, &buffer[..count]) {
            Ok(written) if written == count => Step::Moved,
            Ok(written) => self.keep(&buffer[written..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => self.keep(&buffer[..count]),
            Err(_) => Step::SinkBroken,
        }
    }

    fn keep(&mut self, rest: &[u8]) -> Step {
        self.pending = rest.to_vec();
        Step::SinkFull
    }

    fn flush(&mut self, sink: BorrowedFd<'_>) -> Step {
        match write(sink, &self.pending) {
            Ok(written) if written == self.pending.len() => {
                self.pending = Vec::new();
                Step::Moved
            }
            Ok(written) => {
                self.pending.drain(..written);
                Step::SinkFull
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Step::SinkFull,
            Err(_) => {
                self.pending = Vec::new();
                Step::SinkBroken
            }
        }
    }

    /// None when it has to be done by copying.
    fn splice(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> Option<Step> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(source, None, sink, None, SPLICE_BYTES, flags) {
            Ok(0) => Some(Step::End),
            Ok(_) => Some(Step::Moved),
            // Which of the two it was, EAGAIN does not tell.
            Err(Errno::EAGAIN) if has_data(source) => Some(Step::SinkFull),
            Err(Errno::EAGAIN) => {
                self.way = Way::Small;
                Some(Step::SourceEmpty)
            }
            Err(Errno::EINTR) => Some(Step::Moved),
            Err(Errno::EPIPE) => Some(Step::SinkBroken),
            Err(_) => {
                self.way = Way::Copy;
                None
            }
        }
    }
}

/// Reads and forgets.
pub(crate) fn discard(source: BorrowedFd<'_>) -> Step {
    let mut buffer = [0; COPY_BYTES];
    match fill(source, &mut buffer) {
        Ok(_) => Step::Moved,
        Err(step) => step,
    }
}

/// Moves what is there to a file. May block, as files do.
pub(crate) fn append(source: BorrowedFd<'_>, file: &LogFile) -> Step {
    let mut buffer = vec![0; FILE_BYTES];
    let mut moved = 0;
    while moved < FILE_BURST_BYTES {
        match fill(source, &mut buffer) {
            Ok(count) => {
                file.append(&buffer[..count]);
                moved += count;
            }
            Err(step) => return step,
        }
    }
    Step::Moved
}

/// Reads at least one byte, or tells why not.
fn fill(source: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Step> {
    loop {
        match read(source, buffer) {
            Ok(0) => return Err(Step::End),
            Ok(count) => return Ok(count),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(Step::SourceEmpty),
            Err(Errno::EIO) => return Err(Step::HungUp),
            // Nothing else is documented for pipes and terminals, and nothing more will come.
            Err(_) => return Err(Step::End),
        }
    }
}

/// Whether there is something to read.
pub(crate) fn has_data(source: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    // Without an answer nothing is known, and waiting for the source is the wait that ends.
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::place::set_nonblocking;

    /// A non-blocking pipe with something in it.
    fn filled(bytes: &[u8]) -> std::os::fd::OwnedFd {
        let (reader, writer) = sys::pipe_cloexec().unwrap();
        set_nonblocking(&reader).unwrap();
        File::from(writer).write_all(bytes).unwrap();
        reader
    }

    fn steps(mover: &mut Mover, source: impl AsFd, sink: impl AsFd) -> Step {
        loop {
            match mover.step(source.as_fd(), sink.as_fd()) {
                Step::Moved => {}
                other => return other,
            }
        }
    }

    #[test]
    fn what_cannot_be_spliced_is_copied() {
        let bytes: Vec<u8> = (0..60_000_u32)
            .flat_map(u32::to_le_bytes)
            .take(60_000)
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        // splice(2) to a file opened for appending is EINVAL.
        let sink = File::options().append(true).open(file.path()).unwrap();
        let mut mover = Mover::between_pipes();
        assert_eq!(steps(&mut mover, filled(&bytes), &sink), Step::End);
        assert_eq!(mover.way, Way::Copy);
        assert!(std::fs::read(file.path()).unwrap() == bytes);
    }

    #[test]
    fn what_the_sink_does_not_take_is_kept_until_it_does() {
        let (reader, writer) = sys::pipe_cloexec().unwrap();
        set_nonblocking(&reader).unwrap();
        set_nonblocking(&writer).unwrap();
        while write(&writer, &[0; 4096]).is_ok() {}
        let mut mover = Mover::between_pipes();
        let source = filled(b"hello");
        assert_eq!(steps(&mut mover, &source, &writer), Step::SinkFull);
        assert_eq!(mover.pending, b"hello");
        while discard(reader.as_fd()) == Step::Moved {}
        assert_eq!(steps(&mut mover, &source, &writer), Step::End);
        assert_eq!(mover.pending.capacity(), 0);
        let mut buffer = [0; 8];
        assert_eq!(read(&reader, &mut buffer), Ok(5));
        assert_eq!(&buffer[..5], b"hello");
    }

    #[test]
    fn a_sink_without_a_reader_is_broken() {
        for bytes in [&b"little"[..], &[0; 50_000]] {
            let (_, writer) = sys::pipe_cloexec().unwrap();
            let mut mover = Mover::between_pipes();
            assert_eq!(steps(&mut mover, filled(bytes), writer), Step::SinkBroken);
        }
    }
}
