//! The one error of this crate: what is wrong with a bundle, by the name of the field.

use std::path::PathBuf;

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a bundle, a process or a set of resources was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by its path"
)]
pub enum Error {
    /// A file that is needed could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of ours could not be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is no JSON text at all, or too large to be one of ours.
    #[error("{}: {why}", path.display())]
    Text {
        /// The file, or what was parsed.
        path: PathBuf,
        /// Where and why, e.g. `expected value at line 1 column 2`.
        why: String,
    },
    /// A field breaks a rule of the runtime specification.
    #[error("{field}: {why}")]
    Invalid {
        /// Dotted name in config.json, e.g. `process.cwd`.
        field: String,
        /// Which rule, with the value.
        why: String,
    },
    /// A field asks for something known that is not done here (yet).
    #[error("{field} is not supported: {why}")]
    Unsupported {
        /// Dotted name in config.json.
        field: String,
        /// What is missing.
        why: String,
    },
    /// `linux.seccomp` cannot be compiled.
    #[error("linux.seccomp")]
    Seccomp(#[source] seccomp::Error),
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            why: why.into(),
        }
    }

    pub(crate) fn unsupported(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            why: why.into(),
        }
    }
}
