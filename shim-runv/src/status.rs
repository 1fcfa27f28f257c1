//! Our errors in the shim's terms: the one map.

use guest::call::RefusalKind;
use shim_core::{Code, ShimError};

use crate::Error;

impl From<Error> for ShimError {
    fn from(error: Error) -> Self {
        Self::caused(code(&error), &error)
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::Usage(_) => Code::InvalidArgument,
        Error::Exists(_) => Code::AlreadyExists,
        Error::NotRunning => Code::NotFound,
        Error::Unsupported { .. } | Error::Bundle(bundle::Error::Unsupported { .. }) => {
            Code::Unimplemented
        }
        Error::Bundle(bundle::Error::Write { .. } | bundle::Error::Read { .. }) => Code::Internal,
        Error::Network(network::Error::Unsupported { .. }) => Code::Unimplemented,
        Error::Network(network::Error::Taken(_)) => Code::FailedPrecondition,
        Error::Bundle(_) => Code::InvalidArgument,
        Error::NoGuest { .. } | Error::NoQemu | Error::NoVirtiofsd | Error::NoMountSetattr => {
            Code::Unavailable
        }
        Error::OtherAgent { .. } | Error::NoSandbox(_) => Code::FailedPrecondition,
        Error::Timeout { .. } => Code::DeadlineExceeded,
        Error::Guest(refusal) => match refusal.kind {
            RefusalKind::Invalid => Code::InvalidArgument,
            RefusalKind::NotFound | RefusalKind::Executable => Code::NotFound,
            RefusalKind::Unsupported => Code::Unimplemented,
            RefusalKind::Failed => Code::Internal,
        },
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use guest::call::Refusal;

    use super::*;

    #[test]
    fn callers_can_tell_what_to_do() {
        let check = |error: Error, expected| assert_eq!(ShimError::from(error).kind, expected);
        check(Error::Exists("c".into()), Code::AlreadyExists);
        check(Error::NotRunning, Code::NotFound);
        check(Error::unsupported("x", "y"), Code::Unimplemented);
        check(Error::NoQemu, Code::Unavailable);
        let refusal = |kind| {
            let message = "m".to_owned();
            Error::Guest(Refusal { kind, message })
        };
        check(refusal(RefusalKind::Executable), Code::NotFound);
        check(refusal(RefusalKind::Invalid), Code::InvalidArgument);
        check(refusal(RefusalKind::Failed), Code::Internal);
    }
}
