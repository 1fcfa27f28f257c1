//! The one map from our errors to gRPC codes. The text is one line that says what, which and why.

use tonic::{Code, Status};

use crate::Error;

/// Longer texts are cut: a key has at most 4096 bytes and may stand in one twice.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The status of a request that was refused, or failed.
#[must_use]
pub fn status(error: &Error) -> Status {
    let code = match error {
        Error::Invalid(_) => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::Precondition(_) => Code::FailedPrecondition,
        Error::Exhausted(_) => Code::ResourceExhausted,
        Error::Unavailable(_) => Code::Unavailable,
        Error::TimedOut(_) => Code::DeadlineExceeded,
        Error::DataLoss(_) => Code::DataLoss,
        full if full.is_full() || full.is_out_of_files() => Code::ResourceExhausted,
        read_only if read_only.is_read_only() => Code::FailedPrecondition,
        Error::Io { .. } | Error::Corrupt { .. } | Error::Store { .. } => Code::Internal,
    };
    let mut text = error.in_one_line();
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push_str(" ...");
    }
    Status::new(code, text)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_error_has_the_code_that_containerd_expects() {
        let text = || "why".to_owned();
        let check = |error: Error, code: Code, message: &str| {
            let status = status(&error);
            assert_eq!((status.code(), status.message()), (code, message));
        };
        check(Error::Invalid(text()), Code::InvalidArgument, "why");
        check(
            Error::NotFound(text()),
            Code::NotFound,
            "snapshot \"why\" does not exist",
        );
        check(
            Error::AlreadyExists(text()),
            Code::AlreadyExists,
            "snapshot \"why\" already exists",
        );
        check(Error::Precondition(text()), Code::FailedPrecondition, "why");
        check(Error::Exhausted(text()), Code::ResourceExhausted, "why");
        check(Error::Unavailable(text()), Code::Unavailable, "why");
        check(Error::TimedOut(text()), Code::DeadlineExceeded, "why");
        check(Error::DataLoss(text()), Code::DataLoss, "why");
        let io = |errno| Error::io("make", "/r/x")(io::Error::from_raw_os_error(errno));
        let said = "failed to make /r/x: ";
        let full = format!("{said}No space left on device (os error 28)");
        check(io(nix::libc::ENOSPC), Code::ResourceExhausted, &full);
        let over = format!("{said}Disk quota exceeded (os error 122)");
        check(io(nix::libc::EDQUOT), Code::ResourceExhausted, &over);
        let fixed = format!("{said}Read-only file system (os error 30)");
        check(io(nix::libc::EROFS), Code::FailedPrecondition, &fixed);
        for (errno, advice) in [
            (nix::libc::EMFILE, "LimitNOFILE="),
            (nix::libc::ENFILE, "fs.file-max"),
        ] {
            let status = status(&io(errno));
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains(advice), "{status:?}");
        }
        let failing = format!("{said}Input/output error (os error 5)");
        check(io(nix::libc::EIO), Code::Internal, &failing);
    }

    #[test]
    fn a_text_is_one_line_of_bounded_length() {
        let long = status(&Error::Invalid("é\n".repeat(TEXT_BYTES_MAX)));
        assert!(long.message().len() <= TEXT_BYTES_MAX + 4);
        assert!(!long.message().contains('\n'));
    }
}
