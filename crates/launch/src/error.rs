//! What can go wrong between clone and execve.
//!
//! One variant for each thing a caller does differently; texts for people are in the operands.
//! Inside the stub every error ends as a [`crate::control::Failure`] on the control socket.

use std::io;

use nix::errno::Errno;

use crate::control::{Failure, FailureKind};
use crate::hooks::Place;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed step of the launch.
#[expect(
    clippy::error_impl_error,
    reason = "the crate's one error; callers see it as launch::Error"
)]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control socket itself failed.
    #[error("{what} on the control socket")]
    Socket {
        /// "send" or "receive".
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The peer closed the socket in the middle of a message.
    #[error("control message cut off after {got} of {want} bytes")]
    CutOff {
        /// Bytes that arrived.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// A message is longer than [`crate::control::MESSAGE_BYTES_MAX`].
    #[error("control message of {bytes} bytes exceeds {max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The bytes are no message of this protocol.
    #[error("malformed control message")]
    Malformed(#[source] postcard::Error),
    /// The host side has gone before it answered: nobody is left to tell.
    #[error("the host side is gone")]
    HostGone,
    /// A message that this state does not expect.
    #[error("unexpected control message {0}")]
    Unexpected(&'static str),
    /// The kernel or the host refused a step.
    #[error("{step}")]
    Host {
        /// What was tried, with operands.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A mount was refused, or a path below the new root could not be looked up.
    #[error(transparent)]
    Mount(#[from] mounts::Error),
    /// A field of the request does not fit the image; 0 is no errno of its own.
    #[error("{step}")]
    Request {
        /// What was asked, and why it cannot be.
        step: String,
        /// The errno behind it, 0 when the refusal is ours.
        errno: i32,
    },
    /// The program cannot be executed.
    #[error("{text}")]
    Executable {
        /// What and why, in runc's words, which callers look for.
        text: String,
        /// The errno behind it.
        errno: i32,
    },
    /// A hook could not be started or watched.
    #[error("error running {place}: {path}")]
    HookStart {
        /// Which hook.
        place: Place,
        /// Its program.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A hook ended with another status than 0.
    #[error("error running {place}: {path}: {status}{}", last_words(stderr))]
    HookStatus {
        /// Which hook.
        place: Place,
        /// Its program.
        path: String,
        /// "exit status N" or "signal: killed".
        status: String,
        /// The tail of its standard error.
        stderr: String,
    },
    /// A hook was killed at its timeout.
    #[error(
        "error running {place}: {path}: hook ran past specified timeout of {seconds}.0s{}",
        last_words(stderr)
    )]
    HookTimeout {
        /// Which hook.
        place: Place,
        /// Its program.
        path: String,
        /// How long it was allowed to run.
        seconds: u32,
        /// The tail of its standard error.
        stderr: String,
    },
}

impl Error {
    /// What the peer is told: all that the chain of causes says, down to the errno.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let (kind, mut errno) = self.kind();
        let mut step = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let code = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            if let Some(code) = code {
                errno = code;
                break;
            }
            step = format!("{step}: {error}");
            cause = error.source();
        }
        Failure { step, errno, kind }
    }

    /// Its kind, and the errno it carries itself.
    fn kind(&self) -> (FailureKind, i32) {
        match self {
            Self::Request { errno, .. } => (FailureKind::Request, *errno),
            Self::Executable { errno, .. } => (FailureKind::Executable, *errno),
            Self::HookStart { .. } | Self::HookStatus { .. } | Self::HookTimeout { .. } => {
                (FailureKind::Hook, 0)
            }
            Self::Mount(error) if error.errno().is_none() => (FailureKind::Request, 0),
            _ => (FailureKind::Host, 0),
        }
    }
}

/// What a hook wrote to its standard error, if anything.
fn last_words(stderr: &str) -> String {
    match stderr {
        "" => String::new(),
        text => format!(", stderr: {text}"),
    }
}

/// Makes the kernel's refusal of `step` into an error.
pub(crate) fn host<E: Into<io::Error>>(step: impl FnOnce() -> String) -> impl FnOnce(E) -> Error {
    |source| Error::Host {
        step: step(),
        source: source.into(),
    }
}

/// The words of an errno as Go prints them, which is what callers of runc know and look for.
pub(crate) fn errno_words(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    let mut letters = text.split(" (os error").next().unwrap_or(&text).chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
}
