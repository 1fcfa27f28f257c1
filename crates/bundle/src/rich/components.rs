//! Operators' components that a rich container asks for, by their names. What they are, the host side
//! knows.

use std::collections::BTreeMap;

use super::annotation;
use crate::{Error, Result};

/// Names of components: `monitor,logs`.
pub const COMPONENTS: &str = "org.pouch.rich.components";

const NAME_BYTES_MAX: usize = 64;

/// As many are enough.
const NAMES_MAX: usize = 16;

/// What these annotations ask for.
///
/// # Errors
/// [`Error::Invalid`] for what is no name.
pub fn names(annotations: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let Some(text) = annotations.get(COMPONENTS) else {
        return Ok(Vec::new());
    };
    let names: Vec<_> = text.split(',').map(str::to_owned).collect();
    let refuse = |why: String| Err(Error::invalid(annotation(COMPONENTS), why));
    if names.len() > NAMES_MAX {
        return refuse(format!(
            "{} names, and {NAMES_MAX} are the most",
            names.len()
        ));
    }
    match names.iter().find(|name| !is_name(name)) {
        Some(name) => refuse(format!(
            "{name:?} is no name of a component, as in monitor,logs"
        )),
        None => Ok(names),
    }
}

/// Whether a component may be called so: it is a file name, and part of the name of a unit.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_sound = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name.chars().all(is_sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_named_and_never_paths() {
        let parse = |text: &str| names(&[(COMPONENTS.to_owned(), text.to_owned())].into());
        assert_eq!(parse("monitor,logs_2.x").unwrap(), ["monitor", "logs_2.x"]);
        assert!(names(&BTreeMap::new()).unwrap().is_empty());
        for (text, name) in [("", ""), ("a,", ""), ("../etc", "../etc"), ("a/b", "a/b")] {
            let why = format!(
                "annotations.{COMPONENTS}: {name:?} is no name of a component, as in monitor,logs"
            );
            assert_eq!(parse(text).unwrap_err().to_string(), why);
        }
        let many = ["a"; 17].join(",");
        assert!(parse(&many).is_err());
    }
}
