//! The one error of this crate: what the caller of an RPC may do about it, and a text.

use std::error::Error;
use std::fmt::Display;

/// What went wrong, in the terms containerd's clients act on (`errdefs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A value in the request is wrong, whatever the state.
    InvalidArgument,
    /// No such container, exec or process; also signalling a process that has ended.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// Not in this state; it may work later or after another request.
    FailedPrecondition,
    /// Known to the protocol, not done by this runtime.
    Unimplemented,
    /// Took longer than it may. What was begun is undone in the background.
    DeadlineExceeded,
    /// A peer is away; the same request may work later.
    Unavailable,
    /// Everything else: the host or the runtime failed.
    Internal,
}

/// Why a request failed. The message goes to the user as it is: a lowercase fragment with operands
/// and the causes behind it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ShimError {
    /// What the caller can make of it.
    pub kind: Code,
    /// For people.
    pub message: String,
}

impl ShimError {
    /// An error from a finished sentence fragment.
    pub fn new(kind: Code, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// An error of the host: what was done, and why that failed.
    pub(crate) fn failed(what: &str, error: &dyn Display) -> Self {
        Self::new(Code::Internal, format!("{what}: {error}"))
    }

    /// An error from a typed one: its message and those of all its sources, joined by `: `.
    pub fn caused(kind: Code, error: &dyn Error) -> Self {
        Self::new(kind, chain(error))
    }
}

/// The message of an error and those of all its sources, joined by `: `.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
