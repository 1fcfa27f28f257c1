//! Why streams could not be opened or copied.

use std::io;
use std::path::PathBuf;

/// Result with [`Error`].
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What went wrong with a process's standard streams.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "used as `stdio::Error`, the name of its role in every crate"
)]
#[non_exhaustive]
pub enum Error {
    /// The client named a place that we have no notion of.
    #[error("stdio uri {uri:?}: {why}")]
    Uri {
        /// As given.
        uri: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The place cannot be opened.
    #[error("open {} for {stream}", path.display())]
    Open {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The fifo or file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// There is something at that place that is neither a fifo nor a file.
    #[error("{} for {stream} is {found}, not {expected}", path.display())]
    WrongKind {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The place.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The log binary did not start.
    #[error("start the log binary {}", path.display())]
    LoggerStart {
        /// The program.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The log binary did not say in time that it is ready, or ended before it did.
    #[error("log binary {} {why}", path.display())]
    LoggerReady {
        /// The program.
        path: PathBuf,
        /// What it did instead.
        why: &'static str,
    },
    /// A terminal was asked for and none was given, or the other way round.
    #[error("{0}")]
    Terminal(&'static str),
    /// A call that only fails when the host is out of something.
    #[error("{what}")]
    System {
        /// The call.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
