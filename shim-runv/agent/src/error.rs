//! The one error of this crate, and what of it the shim is told.

use std::io;
use std::path::Path;

use guest::call::{Refusal, RefusalKind};
use launch::control::{Failure, FailureKind};

/// Result with [`Error`].
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one per crate, named as everywhere here"
)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was tried, with its operands.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// config.json, a process or resources.
    #[error(transparent)]
    Bundle(#[from] bundle::Error),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] cgroups::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A message to the stub.
    #[error(transparent)]
    Launch(#[from] launch::Error),
    /// A step inside the container failed.
    #[error("{0}")]
    Inside(Failure),
    /// The stub went away without a word.
    #[error("{0} ended unexpectedly")]
    Vanished(&'static str),
    /// There is no such container or process any more.
    #[error("{0} is not there")]
    NotFound(String),
    /// The shim asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The stream to the shim.
    #[error(transparent)]
    Wire(#[from] guest::wire::Error),
}

impl Error {
    /// Names a failed step, for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// Names a failed step on a path, for `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(verb: &str, path: &Path) -> impl FnOnce(E) -> Self {
        Self::io(format!("{verb} {}", path.display()))
    }

    /// Message and causes in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// What the shim is told.
    pub(crate) fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Bundle(bundle::Error::Unsupported { .. }) => RefusalKind::Unsupported,
            Self::Bundle(_) | Self::Invalid(_) => RefusalKind::Invalid,
            Self::NotFound(_) => RefusalKind::NotFound,
            Self::Inside(failure) => match failure.kind {
                FailureKind::Executable => RefusalKind::Executable,
                FailureKind::Request => RefusalKind::Invalid,
                FailureKind::Host | FailureKind::Hook => RefusalKind::Failed,
            },
            _ => RefusalKind::Failed,
        };
        Refusal {
            kind,
            message: self.chain(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_learns_what_kind_of_refusal_it_is() {
        let check = |error: Error, kind| assert_eq!(error.refusal().kind, kind);
        check(Error::NotFound("c".into()), RefusalKind::NotFound);
        check(Error::Invalid("x".into()), RefusalKind::Invalid);
        check(Error::Vanished("init"), RefusalKind::Failed);
        let failure = |kind| Failure {
            step: "exec".into(),
            errno: 2,
            kind,
        };
        check(
            Error::Inside(failure(FailureKind::Executable)),
            RefusalKind::Executable,
        );
        let error = Error::on("open", Path::new("/x"))(io::Error::from_raw_os_error(2));
        assert_eq!(
            error.refusal().message,
            "open /x: No such file or directory (os error 2)"
        );
    }
}
