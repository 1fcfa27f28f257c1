//! Waiting for the kernel with a limit: for a file of a cgroup to change, or, where the kernel
//! tells nobody, for a little time.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::{Error, Result};

const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// A bounded wait: each pause is twice as long as the one before, until the limit.
#[derive(Debug)]
pub(crate) struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    /// One that ends after `limit`.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            deadline: Instant::now() + limit,
            pause: FIRST_PAUSE,
        }
    }

    /// Pauses, or says that the limit is reached. A change of `events` since they were last read
    /// ends the pause at once.
    #[must_use]
    pub(crate) fn pause(&mut self, events: Option<&Events>) -> Waited {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Waited::TooLong;
        }
        let mut polled: Vec<PollFd<'_>> = events
            .iter()
            .map(|events| PollFd::new(events.0.as_fd(), PollFlags::POLLPRI))
            .collect();
        let timeout = TimeSpec::from_duration(self.pause.min(left));
        // EINTR and the like only end this pause early; the caller looks again in any case.
        let _early = ppoll(&mut polled, Some(timeout), None);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Waited::LookAgain
    }
}

/// A file of events of version 2 (cgroup.events, memory.events), which says by poll(2) that it has
/// changed since this very descriptor was read.
#[derive(Debug)]
pub(crate) struct Events(File);

impl Events {
    /// Those of a cgroup in the file of that name.
    pub(crate) fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        File::open(&path)
            .map(Self)
            .map_err(|source| Error::Read { path, source })
    }

    /// What they say now; from here on a change ends a pause.
    pub(crate) fn read(&self) -> std::io::Result<String> {
        // A handful of words and numbers; never near this many bytes.
        let mut buffer = [0; 1024];
        let count = self.0.read_at(&mut buffer, 0)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a pause came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Time to look again.
    LookAgain,
    /// The limit is reached.
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends() {
        let mut patience = Patience::new(Duration::from_millis(3));
        let mut pauses = 0;
        while patience.pause(None) == Waited::LookAgain {
            pauses += 1;
        }
        // Fewer when others have the processor; not more, because pauses grow.
        assert!(pauses <= 20, "{pauses}");
        assert_eq!(Patience::new(Duration::ZERO).pause(None), Waited::TooLong);
    }
}
