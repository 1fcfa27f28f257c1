//! What the calling process may do with a file, asked with the rights that count.

use std::ffi::CStr;
use std::io;

use crate::raw;

/// Whether the calling process may execute a file, by its effective ids and capabilities
/// (faccessat2(2), kernel 5.8). access(2) asks for the real ones, and C libraries that make up for
/// the missing call by looking at the mode know nothing of capabilities.
///
/// # Errors
/// The kernel's refusal; ENOSYS before 5.8, EPERM also from filters that do not know the call.
pub fn may_execute(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated and outlives the call, which only reads it.
    raw::unit(unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::X_OK,
            libc::AT_EACCESS,
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_may_be_executed_and_a_plain_file_may_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = std::ffi::CString::new(file.path().as_os_str().as_bytes()).unwrap();
        let answer = |mode| {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            may_execute(&path).map_err(|error| error.raw_os_error().unwrap())
        };
        if answer(0o755) == Err(libc::ENOSYS) {
            return;
        }
        assert_eq!((answer(0o755), answer(0o644)), (Ok(()), Err(libc::EACCES)));
    }
}
