//! Names of execs, by containerd's rules for identifiers.

use std::fmt;

use crate::{Kind, Refusal};

/// Longest identifier (containerd `pkg/identifiers`).
const LENGTH_MAX: usize = 76;

/// The id of an exec: 1 to 76 characters, groups of ASCII letters and digits joined by single
/// `.`, `_` or `-`. Safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecId(String);

impl ExecId {
    /// Checks an id from outside.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`].
    pub fn new(id: &str) -> Result<Self, Refusal> {
        let refuse = |message| Err(Refusal::new(Kind::InvalidArgument, message));
        if id.is_empty() {
            return refuse("identifier must not be empty".to_owned());
        }
        if id.len() > LENGTH_MAX {
            return refuse(format!(
                "identifier {id:?} greater than maximum length ({LENGTH_MAX} characters)"
            ));
        }
        let group =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        if !id.split(['.', '_', '-']).all(group) {
            return refuse(format!(
                "identifier {id:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
            ));
        }
        Ok(Self(id.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(id: &str, expected: Result<(), &str>) {
        let result = ExecId::new(id);
        let result = result.as_ref().map(|_| ()).map_err(|r| r.message.as_str());
        match expected {
            Ok(()) => assert_eq!(result, Ok(())),
            Err(part) => assert!(result.unwrap_err().contains(part), "{result:?}"),
        }
    }

    #[test]
    fn identifiers_follow_containerds_rules() {
        check("a", Ok(()));
        check("Exec-1.b_c", Ok(()));
        check(&"x".repeat(76), Ok(()));
        check("", Err("must not be empty"));
        check(&"x".repeat(77), Err("maximum length (76 characters)"));
        for bad in [
            "-a", "a-", "a--b", "a.-b", ".", "a/b", "a b", "ä", "a\0", "..",
        ] {
            check(bad, Err("must match"));
        }
    }
}
