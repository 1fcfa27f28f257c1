//! Kills for memory that guests tell of, as descriptors for those who wait for them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Error, Result};

/// The containers of one guest whose kills somebody waits for.
#[derive(Debug, Clone, Default)]
pub(crate) struct OomKills(Arc<Mutex<BTreeMap<String, EventFd>>>);

impl OomKills {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, EventFd>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor that is readable when there was one in this container since the last [`Self::take`].
    pub(crate) fn follow(&self, container: &str) -> Result<OwnedFd> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags).map_err(Error::io("make an eventfd"))?;
        let descriptor = event
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::io("duplicate a descriptor"))?;
        self.lock().insert(container.to_owned(), event);
        Ok(descriptor)
    }

    /// The guest says that there was one; of a container that nobody follows it is nothing.
    pub(crate) fn add(&self, container: &str) {
        if let Some(event) = self.lock().get(container) {
            // Full, it is readable as it is.
            let _full = event.write(1);
        }
    }

    /// How many there were since the last time.
    pub(crate) fn take(&self, container: &str) -> Result<u64> {
        let events = self.lock();
        let event = events.get(container).ok_or(Error::NotRunning)?;
        match event.read() {
            Ok(count) => Ok(count),
            Err(Errno::EAGAIN) => Ok(0),
            Err(errno) => Err(Error::io("read an eventfd")(errno)),
        }
    }

    /// Nobody waits any more.
    pub(crate) fn forget(&self, container: &str) {
        self.lock().remove(container);
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn kills_are_counted_until_they_are_taken_and_only_of_known_containers() {
        let kills = OomKills::default();
        let descriptor = kills.follow("c").unwrap();
        let is_readable = || {
            let mut fds = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        kills.add("other");
        assert!(!is_readable());
        assert_eq!(kills.take("c").unwrap(), 0);
        kills.add("c");
        kills.add("c");
        assert!(is_readable());
        assert_eq!(kills.take("c").unwrap(), 2);
        assert!(!is_readable());
        kills.forget("c");
        kills.add("c");
        assert!(matches!(kills.take("c"), Err(Error::NotRunning)));
    }
}
