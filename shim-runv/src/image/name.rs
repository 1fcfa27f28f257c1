//! What a guest image is called: a word that is a file name and nothing else.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The name of the image that a container gets which asks for none.
const DEFAULT: &str = "default";

/// Bytes of a name at most.
const BYTES_MAX: usize = 64;

/// A guest image's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Default for Name {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl Name {
    /// Its folder's; none for the one whom nobody has to ask for.
    pub(crate) fn named(&self) -> Option<&str> {
        (self.0 != DEFAULT).then_some(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = Error;

    /// # Errors
    /// [`Error::Usage`] for what could be more than a file name, or hide one.
    fn from_str(text: &str) -> Result<Self, Error> {
        let is_plain = |letter: u8| letter.is_ascii_alphanumeric() || b"._-".contains(&letter);
        let begins = text
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric());
        if begins && text.len() <= BYTES_MAX && text.bytes().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::Usage(format!(
            "{text:?} is no name of a guest image: it has 1 to {BYTES_MAX} letters, digits and signs of \"._-\", \
             and begins with a letter or digit"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_file_name_and_nothing_else() {
        for good in ["6.12", "debian-13", "a", "5.10.0-28_old"] {
            assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-x",
            ".hidden",
            "a b",
            "ü",
            &"a".repeat(65),
        ] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(
                error.contains("is no name of a guest image"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn the_default_has_a_name_too() {
        assert_eq!("default".parse::<Name>().unwrap(), Name::default());
        assert_eq!(Name::default().named(), None);
        assert_eq!("other".parse::<Name>().unwrap().named(), Some("other"));
    }
}
