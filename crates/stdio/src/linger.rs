//! Keeps the fifo of a stream that has ended for a client that has not opened it yet.
//!
//! A client opens its end at its own pace, perhaps after a short process has ended. Were the fifo
//! closed by then, what is in it would be gone, and a client that opens it would wait for a writer
//! for ever.
//!
//! A fifo says by POLLERR that nobody reads it, but wakes nobody when that changes, so this looks
//! now and then. inotify would tell, but hosts run out of its instances, and closing one blocks for
//! 20 ms.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

/// First pause between two looks; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause: what the end of a stream may be late by.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Closes `fifo`, open for reading and writing, once somebody else reads it.
///
/// Where the host cannot tell (no /proc), it stays open until the caller gives up: what is in it is
/// kept, its end comes late.
pub(crate) async fn until_opened(fifo: OwnedFd) {
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let Ok(writer) = open(path.as_str(), flags, Mode::empty()) else {
        std::future::pending::<()>().await;
        return;
    };
    // From here on the writer's POLLERR tells whether others read.
    drop(fifo);
    let mut pause = PAUSE_MIN;
    while !has_reader(&writer) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn has_reader(writer: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let events = fds[0].revents().unwrap_or(PollFlags::empty());
    polled.is_ok() && !events.contains(PollFlags::POLLERR)
}
