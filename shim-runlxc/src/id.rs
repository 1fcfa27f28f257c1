//! A container's id, checked once; whoever holds one may join it to a path.

use std::fmt;

use crate::{Error, Result};

/// Longest id, as runc's.
const ID_BYTES_MAX: usize = 1024;

/// An id that is one plain path component: runc's `^[\w+-\.]+$`, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Error::InvalidId`] with the reason.
    pub fn parse(text: &str) -> Result<Self> {
        let why = if text.is_empty() {
            "container id cannot be empty"
        } else if text.len() > ID_BYTES_MAX {
            "invalid container ID format: longer than 1024 bytes"
        } else if text == "." || text == ".." || !text.bytes().all(allowed) {
            "invalid container ID format"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Error::InvalidId { why })
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Go's `\w`, and the range from `+` to `.`.
fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || (b'+'..=b'.').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_runc_takes() {
        for good in ["a", "A-b_c.d+e", "1,2", "...", &"x".repeat(1024)] {
            assert_eq!(ContainerId::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "a b",
            "é",
            "a\n",
            "a\0",
            &"x".repeat(1025),
        ] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
