//! Our errors in the shim's terms: the one map.

use std::io::ErrorKind;

use launch::control::FailureKind;
use shim_core::{Code, ShimError};

use crate::Error;
use crate::error::SystemdFailure;

impl From<Error> for ShimError {
    fn from(error: Error) -> Self {
        Self::caused(code(&error), &error)
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::InvalidId { .. } | Error::Usage(_) => Code::InvalidArgument,
        Error::Exists => Code::AlreadyExists,
        Error::NotFound | Error::NotRunning => Code::NotFound,
        Error::State(_)
        | Error::EndedUnready { .. }
        | Error::Component { .. }
        | Error::HostScript { .. }
        | Error::Traffic {
            source: network::Error::NoLinks | network::Error::Taken(_) | network::Error::Shaped(_),
            ..
        }
        | Error::IntelRdt {
            source: cgroups::Error::NoClass { .. } | cgroups::Error::OtherClass { .. },
        }
        | Error::NetDevices {
            source: network::Error::NoSuchLink(_) | network::Error::NameInUse(_),
        } => Code::FailedPrecondition,
        Error::Bundle(bundle::Error::Unsupported { .. }) | Error::Unsupported { .. } => {
            Code::Unimplemented
        }
        Error::Bundle(bundle::Error::Read { source, .. })
            if source.kind() != ErrorKind::NotFound =>
        {
            Code::Internal
        }
        Error::Bundle(bundle::Error::Write { .. }) => Code::Internal,
        Error::Bundle(_) => Code::InvalidArgument,
        Error::Inside(failure) => match failure.kind {
            FailureKind::Executable => Code::NotFound,
            FailureKind::Request => Code::InvalidArgument,
            FailureKind::Host | FailureKind::Hook => Code::Internal,
        },
        Error::LeftFrozen { failed, .. } | Error::OtherStub { failed, .. } => code(failed),
        Error::Timeout { .. } | Error::NotReady { .. } => Code::DeadlineExceeded,
        Error::Systemd { kind, .. } => match kind {
            SystemdFailure::Taken => Code::AlreadyExists,
            SystemdFailure::Value => Code::InvalidArgument,
            SystemdFailure::Late => Code::DeadlineExceeded,
            SystemdFailure::Refused | SystemdFailure::Broken => Code::Internal,
        },
        Error::LxcMissing | Error::StubMissing { .. } => Code::Unavailable,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_can_tell_what_to_do() {
        let check = |error: Error, expected| assert_eq!(ShimError::from(error).kind, expected);
        check(Error::Exists, Code::AlreadyExists);
        check(Error::NotRunning, Code::NotFound);
        check(Error::State("x".into()), Code::FailedPrecondition);
        check(Error::unsupported("x", "y"), Code::Unimplemented);
        let read = |kind: ErrorKind| {
            Error::Bundle(bundle::Error::Read {
                path: "config.json".into(),
                source: kind.into(),
            })
        };
        check(read(ErrorKind::NotFound), Code::InvalidArgument);
        check(read(ErrorKind::StorageFull), Code::Internal);
        let traffic = |source| Error::Traffic {
            field: "x".into(),
            source,
        };
        check(traffic(network::Error::NoLinks), Code::FailedPrecondition);
        let source = ErrorKind::Unsupported.into();
        let what = "x".into();
        check(traffic(network::Error::Io { what, source }), Code::Internal);
        let systemd = |kind| Error::Systemd {
            kind,
            what: "x".into(),
            why: "y".into(),
        };
        for (kind, expected) in [
            (SystemdFailure::Taken, Code::AlreadyExists),
            (SystemdFailure::Value, Code::InvalidArgument),
            (SystemdFailure::Late, Code::DeadlineExceeded),
            (SystemdFailure::Refused, Code::Internal),
            (SystemdFailure::Broken, Code::Internal),
        ] {
            check(systemd(kind), expected);
        }
        check(Error::LxcMissing, Code::Unavailable);
        check(Error::Leftover { what: vec![] }, Code::Internal);
    }
}
