//! What can go wrong; `status.rs` gives each its gRPC code.

use std::{io, path::PathBuf};

use nix::libc;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by its path"
)]
#[non_exhaustive]
pub enum Error {
    /// A value nobody can accept: says which, and why. `INVALID_ARGUMENT`.
    #[error("{0}")]
    Invalid(String),
    /// No snapshot has this name. `NOT_FOUND`.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// A snapshot has this name already. `ALREADY_EXISTS`.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// The snapshot is not in a state in which this can be done. `FAILED_PRECONDITION`.
    #[error("{0}")]
    Precondition(String),
    /// The host has no room: says of what, and where. `RESOURCE_EXHAUSTED`.
    #[error("{0}")]
    Exhausted(String),
    /// Not now; the same request may succeed later. `UNAVAILABLE`.
    #[error("{0}")]
    Unavailable(String),
    /// It was not done in time, and goes on. `DEADLINE_EXCEEDED`.
    #[error("{0}")]
    TimedOut(String),
    /// What was written is not there any more: says of what, why, and what to do. `DATA_LOSS`.
    #[error("{0}")]
    DataLoss(String),
    /// A system call failed. `INTERNAL`, or `RESOURCE_EXHAUSTED` for ENOSPC, EDQUOT, EMFILE and
    /// ENFILE, or `FAILED_PRECONDITION` for EROFS.
    #[error("failed to {action} {}{}", path.display(), advice(source))]
    Io {
        /// What was to be done, as a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The store cannot be read. `INTERNAL`; a daemon does not start with it.
    #[error(
        "the snapshot store {} cannot be read ({why}): stop the daemon and run its `doctor \
         --rebuild`, which makes the store anew from the snapshots' directories",
        path.display()
    )]
    Corrupt {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The store could not be read or written. `INTERNAL`.
    #[error("failed to {action} the snapshot store")]
    Store {
        /// What was to be done, as a verb.
        action: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Its text and those of all that caused it, joined by colons.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        one_line(self)
    }

    /// Whether a disk or a quota is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
            Self::Exhausted(_) => true,
            _ => false,
        }
    }

    /// Whether a file system takes no changes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let read_only = io::ErrorKind::ReadOnlyFilesystem;
        matches!(self, Self::Io { source, .. } if source.kind() == read_only)
    }

    /// Whether this process or the host has no more descriptors of files.
    #[must_use]
    pub fn is_out_of_files(&self) -> bool {
        matches!(self, Self::Io { source, .. } if !advice(source).is_empty())
    }

    /// Another that asks for the same of whoever gets it: it cannot be given to several.
    pub(crate) fn again(&self, text: String) -> Self {
        match self {
            full if full.is_full() || full.is_out_of_files() => Self::Exhausted(text),
            Self::Precondition(_) => Self::Precondition(text),
            read_only if read_only.is_read_only() => Self::Precondition(text),
            _ => Self::Unavailable(text),
        }
    }

    /// For `map_err`: a failed system call on a path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// What to do where the error number alone tells nobody.
fn advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EMFILE) => {
            " (the daemon has as many files open as it may: raise LimitNOFILE= of its unit, or see \
             who keeps connections to it open)"
        }
        Some(libc::ENFILE) => {
            " (the host has as many files open as it may: raise the sysctl fs.file-max)"
        }
        _ => "",
    }
}

/// The text of an error and those of all that caused it, joined by colons.
#[must_use]
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some say themselves what caused them.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text.replace(['\n', '\r'], " ")
}
