//! What can go wrong with a mount, in words that name it; must not log or retry.

use std::io;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refused mount, look-up or undo.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by its path"
)]
pub enum Error {
    /// A mount could not be made; the text is the one people know from runc.
    #[error("error mounting {what:?} to rootfs at {target:?}")]
    Mount {
        /// Its source.
        what: String,
        /// Its target as asked.
        target: String,
        /// Which step failed and why.
        #[source]
        cause: Box<Error>,
    },
    /// The kernel refused a step.
    #[error("{step}")]
    Kernel {
        /// What was tried, with its operands.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// We refuse it: it would break out of the container or break the container's own view.
    #[error("{why}")]
    Refused {
        /// What is wrong with it.
        why: String,
    },
    /// A path could not be found or made below a root.
    #[error("{step} {path} below {root}")]
    Lookup {
        /// "find", "make", ...
        step: &'static str,
        /// The path as asked.
        path: PathBuf,
        /// The root directory.
        root: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Option words that no mount can have.
    #[error("mount options")]
    Options(#[from] OptionError),
    /// A mount could not be taken away.
    #[error("unmount {path}")]
    Unmount {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A list of option words that no mount can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A NUL byte would end the text early.
    #[error("option {word:?} holds a NUL byte")]
    Nul {
        /// The word.
        word: String,
    },
    /// `uidmap=` or `gidmap=` that cannot be.
    #[error("option {word:?} {why}")]
    IdMap {
        /// The word, or its key when it is missing.
        word: String,
        /// What is wrong with it.
        why: String,
    },
    /// The list is too long.
    #[error("options of {bytes} bytes exceed {max}")]
    TooLong {
        /// Bytes of all words.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

impl Error {
    /// The errno behind it, for a peer that takes numbers; none when the refusal is ours.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Mount { cause, .. } => cause.errno(),
            Self::Kernel { source, .. }
            | Self::Lookup { source, .. }
            | Self::Unmount { source, .. } => source.raw_os_error(),
            Self::Refused { .. } | Self::Options(_) => None,
        }
    }

    pub(crate) fn kernel(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Kernel {
            step: step.into(),
            source: source.into(),
        }
    }

    pub(crate) fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into() }
    }
}
