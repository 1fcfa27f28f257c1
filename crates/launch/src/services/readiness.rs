//! When a service is ready: at once, when a file is there, when somebody listens at a
//! port, or when it says so (sd_notify(3)).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{UnixAddr, bind, getsockname};

use crate::error::{Result, host};
use crate::listening::is_listening;
use crate::plan::{Ready, Service};

use super::process::failed;

/// Longest message of a service that is looked at.
const MESSAGE_BYTES_MAX: usize = 4096;

/// So many messages are taken at a time: whoever sends them without end keeps nobody from a deadline.
const MESSAGES_MAX: usize = 64;

/// Tables of the supervisor's network.
const TABLES: &str = "/proc/self/net";

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What tells that a service is ready.
#[derive(Debug)]
pub(super) enum Watch {
    /// Nothing has to.
    None,
    /// Changes of the directory that a file is to appear in.
    File(Inotify, PathBuf),
    /// Messages of the service; the name of the socket for its environment.
    Messages(UnixDatagram, String),
    /// The kernel's table of ports, which tells of no change.
    Port(u16),
}

impl Watch {
    /// Begins to look, before the service is started.
    pub(super) fn begin(service: &Service, ready: &Ready) -> Result<Self> {
        match ready {
            Ready::Started => Ok(Self::None),
            Ready::File(path) => {
                let path = PathBuf::from(path);
                let directory = path.parent().unwrap_or(Path::new("/"));
                let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
                let changes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
                let inotify = Inotify::init(flags).and_then(|inotify| {
                    inotify.add_watch(directory, changes)?;
                    Ok(inotify)
                });
                let cannot = |errno| {
                    let directory = directory.display();
                    failed(
                        service,
                        format_args!("cannot be waited for in {directory}: {errno}"),
                    )
                };
                Ok(Self::File(inotify.map_err(cannot)?, path))
            }
            Ready::Port(port) => Ok(Self::Port(*port)),
            Ready::Notified => {
                let step = || "make a socket for messages of a service".to_owned();
                let socket = UnixDatagram::unbound().map_err(host(step))?;
                // The kernel finds a free name, which is of no file system.
                bind(socket.as_raw_fd(), &UnixAddr::new_unnamed()).map_err(host(step))?;
                socket.set_nonblocking(true).map_err(host(step))?;
                let address: UnixAddr = getsockname(socket.as_raw_fd()).map_err(host(step))?;
                let name = String::from_utf8_lossy(address.as_abstract().unwrap_or_default());
                let entry = format!("NOTIFY_SOCKET=@{name}");
                Ok(Self::Messages(socket, entry))
            }
        }
    }

    /// What is left of it when the service is ready: one that says so is to find who hears it whenever
    /// it is started again.
    pub(super) fn once_ready(self) -> Self {
        match self {
            Self::None | Self::File(..) | Self::Port(_) => Self::None,
            Self::Messages(..) => self,
        }
    }

    /// What comes to the environment of the service.
    pub(super) fn environment(&self) -> Option<&str> {
        match self {
            Self::Messages(_, entry) => Some(entry),
            _ => None,
        }
    }

    /// What to wait at.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::None | Self::Port(_) => None,
            Self::File(inotify, _) => Some(inotify.as_fd()),
            Self::Messages(socket, _) => Some(socket.as_fd()),
        }
    }

    /// How long to wait at most before the next look; none: the descriptor tells.
    pub(super) fn look_every(&self) -> Option<Duration> {
        matches!(self, Self::Port(_)).then_some(LOOK_EVERY)
    }

    /// Whether it is so far. What had come until now is taken, lest the service waits to send more.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::None => true,
            // A container without /proc has no such table, and waits for its limit.
            Self::Port(port) => is_listening(Path::new(TABLES), *port).unwrap_or(false),
            Self::File(inotify, path) => {
                // What changed does not matter: the file is there or not.
                let _seen = inotify.read_events();
                path.symlink_metadata().is_ok()
            }
            Self::Messages(socket, _) => {
                let mut message = [0; MESSAGE_BYTES_MAX];
                let mut is_ready = false;
                for _ in 0..MESSAGES_MAX {
                    let Ok(length) = socket.recv(&mut message) else {
                        break;
                    };
                    is_ready |= says_ready(message.get(..length).unwrap_or_default());
                }
                is_ready
            }
        }
    }
}

/// Whether a message of sd_notify(3) says so: lines of the form NAME=VALUE, of which others are the
/// sender's own affair.
#[must_use]
pub fn says_ready(message: &[u8]) -> bool {
    message
        .split(|&byte| byte == b'\n')
        .any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_ready_by_a_line() {
        for (message, expected) in [
            (&b"READY=1"[..], true),
            (b"STATUS=up\nREADY=1\n", true),
            (b"READY=10", false),
            (b"STATUS=READY=1", false),
            (b"", false),
        ] {
            assert_eq!(says_ready(message), expected, "{message:?}");
        }
    }
}
