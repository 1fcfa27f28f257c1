//! The one map from our codes to those of ttrpc, and back. Texts pass unchanged.

use ttrpc::Code as Wire;

use crate::{Code, ShimError};

/// What a client of the Task API gets.
pub(crate) fn to_wire(error: ShimError) -> ttrpc::Error {
    let code = match error.kind {
        Code::InvalidArgument => Wire::INVALID_ARGUMENT,
        Code::NotFound => Wire::NOT_FOUND,
        Code::AlreadyExists => Wire::ALREADY_EXISTS,
        Code::FailedPrecondition => Wire::FAILED_PRECONDITION,
        Code::Unimplemented => Wire::UNIMPLEMENTED,
        Code::DeadlineExceeded => Wire::DEADLINE_EXCEEDED,
        Code::Unavailable => Wire::UNAVAILABLE,
        // containerd's own errdefs know no "internal": what is not one of theirs is unknown.
        Code::Internal => Wire::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.message))
}

/// What another shim or containerd answered.
pub(crate) fn from_wire(error: &ttrpc::Error) -> ShimError {
    let ttrpc::Error::RpcStatus(status) = error else {
        return ShimError::new(Code::Unavailable, error.to_string());
    };
    let kind = match status.code() {
        Wire::INVALID_ARGUMENT => Code::InvalidArgument,
        Wire::NOT_FOUND => Code::NotFound,
        Wire::ALREADY_EXISTS => Code::AlreadyExists,
        Wire::FAILED_PRECONDITION => Code::FailedPrecondition,
        Wire::UNIMPLEMENTED => Code::Unimplemented,
        Wire::DEADLINE_EXCEEDED => Code::DeadlineExceeded,
        Wire::UNAVAILABLE => Code::Unavailable,
        _ => Code::Internal,
    };
    ShimError::new(kind, status.message())
}

/// A refusal of the life cycle.
impl From<task::Refusal> for ShimError {
    fn from(refusal: task::Refusal) -> Self {
        let kind = match refusal.kind {
            task::Kind::NotFound => Code::NotFound,
            task::Kind::AlreadyExists => Code::AlreadyExists,
            task::Kind::FailedPrecondition => Code::FailedPrecondition,
            task::Kind::InvalidArgument => Code::InvalidArgument,
        };
        Self::new(kind, refusal.to_string())
    }
}
