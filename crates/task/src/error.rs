//! Why a request is not done.

use std::fmt;

/// What a client can make of a refusal (containerd's `errdefs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// There is no such container or process, or it has ended.
    NotFound,
    /// The exec id is taken.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// Never, whatever the state.
    InvalidArgument,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::FailedPrecondition => "failed precondition",
            Self::InvalidArgument => "invalid argument",
        })
    }
}

/// A request that is not done, in the words of containerd's own shim: clients know them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {kind}")]
pub struct Refusal {
    /// What the client can make of it.
    pub kind: Kind,
    /// What and why, without the kind.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}
