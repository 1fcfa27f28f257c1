//! Snapshots that share one limit, such as those of a pod.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Unreadable;

const TAKEN: &str = "a group is named by 1 to 128 letters, digits, '.', '_' and '-', the first a \
                     letter or digit";
const BYTES_MAX: usize = 128;

/// The name of a group inside a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct GroupName(String);

impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.0
    }
}

impl TryFrom<String> for GroupName {
    type Error = Unreadable;

    fn try_from(text: String) -> Result<Self, Unreadable> {
        text.parse()
    }
}

impl GroupName {
    /// The name as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let refuse = |why| Err(Unreadable::new(text, why, TAKEN));
        let Some(first) = text.bytes().next() else {
            return refuse("is empty");
        };
        if text.len() > BYTES_MAX {
            return refuse("is too long");
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !first.is_ascii_alphanumeric() || !text.bytes().all(allowed) {
            return refuse("has other characters");
        }
        Ok(Self(text.to_owned()))
    }
}

/// A group. The same name in two namespaces of containerd is two groups: nobody can join one from
/// outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// The namespace of the snapshot; empty for a client that has none.
    pub namespace: String,
    /// Its name there.
    pub name: GroupName,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["a", "pod-1", "0.b_C", &"x".repeat(128)] {
            assert_eq!(name.parse::<GroupName>().unwrap().as_str(), name);
        }
        for name in ["", "-a", ".", "a/b", "a b", "ä", "a\n", &"x".repeat(129)] {
            let error = name.parse::<GroupName>().unwrap_err();
            assert!(
                error.to_string().contains("letters, digits"),
                "{name}: {error}"
            );
        }
    }
}
