//! The last program of pid 1, in place of the image's own: ends what is left, and ends with the
//! program's status, which an init has no way to tell.
//!
//! There is nothing to unmount and no machine to turn off: the kernel ends the namespaces.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use sys::Pid;
use sys::process::kill_number;

use super::accounts::read_regular;
use super::application::status_path;

/// What services leave behind is given so long after TERM: it had the init's own limit before.
const GRACE: Duration = Duration::from_secs(5);

/// Of a container whose program never ran.
const NEVER_RAN: i32 = 255;

/// Ends all others; gives the status to end with.
#[must_use]
pub fn run() -> i32 {
    // Blocked, so that the wait below sees all of them.
    let _none_lost = SigSet::all().thread_block();
    let everybody = Pid::from_raw(-1);
    // ESRCH: there is nobody.
    let _sent = kill_number(everybody, Signal::SIGTERM as i32);
    let _sent = kill_number(everybody, Signal::SIGCONT as i32);
    let deadline = Instant::now() + GRACE;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match waitpid(everybody, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => wait_for_a_child(left),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    status()
}

/// Until a child has ended, or so long.
fn wait_for_a_child(limit: Duration) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    use std::os::fd::AsFd;
    let ended: SigSet = [Signal::SIGCHLD].into_iter().collect();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let Ok(signals) = SignalFd::with_flags(&ended, flags) else {
        return;
    };
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    let _early = poll(&mut fds, limit);
    let _taken = signals.read_signal();
}

fn status() -> i32 {
    let text = read_regular(&status_path()).ok().flatten();
    text.as_deref().and_then(parse).unwrap_or(NEVER_RAN)
}

fn parse(text: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(text).ok()?;
    text.trim_end()
        .parse()
        .ok()
        .filter(|code| (0..=255).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_what_was_written() {
        for (text, code) in [
            ("000\n", Some(0)),
            ("143\n", Some(143)),
            ("", None),
            ("300", None),
        ] {
            assert_eq!(parse(text.as_bytes()), code, "{text:?}");
        }
    }
}
