//! Extended attributes, which nix has no call for.

use std::ffi::{CStr, CString};
use std::io;

use crate::raw;

/// Sets an extended attribute of what a path leads to (setxattr(2)), whether it was there or not.
///
/// # Errors
/// `InvalidInput` for a NUL byte in the path; ENOTSUP when the file system has none of that kind,
/// ERANGE or E2BIG for a value that is too long.
pub fn set_xattr(path: &str, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: path and name are NUL-terminated, pointer and length describe `value`; the call only
    // reads them.
    raw::unit(
        unsafe {
            libc::setxattr(
                path.as_ptr(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        }
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_set_and_set_again_and_what_has_none_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        // Root may set trusted ones on every file system that has attributes, a tmpfs too.
        set_xattr(path, c"trusted.pouch", b"a").unwrap();
        set_xattr(path, c"trusted.pouch", b"b").unwrap();
        let refused = set_xattr("/proc/self/status", c"trusted.pouch", b"a").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTSUP));
        let missing = set_xattr("/no/such/file", c"trusted.pouch", b"a").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(set_xattr("a\0b", c"trusted.pouch", b"").is_err());
    }
}
