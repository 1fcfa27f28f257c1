//! How much a container matters beside others, as its annotation says.

use std::collections::BTreeMap;

use cgroups::Priority;

use crate::annotations::nearest;
use crate::{Error, Result};

/// One of the words of [`Priority`].
pub const PRIORITY: &str = "org.pouch.priority";

/// What was done for it: in the state of a container, not in its configuration.
pub const APPLIED: &str = "org.pouch.priority.applied";

/// What the annotations of a container ask for.
///
/// # Errors
/// [`Error::Invalid`] for another word than the known ones.
pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Priority>> {
    let Some(word) = annotations.get(PRIORITY) else {
        return Ok(None);
    };
    let known = Priority::ALL;
    match known.into_iter().find(|priority| priority.as_str() == word) {
        Some(priority) => Ok(Some(priority)),
        None => {
            let hint = nearest(&known.map(Priority::as_str), word).unwrap_or_default();
            let why = format!("{word:?} is no priority: the nearest is {hint}");
            Err(Error::invalid(format!("annotations.{PRIORITY}"), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_one_of_four_words() {
        let parse = |word: &str| of(&[(PRIORITY.to_owned(), word.to_owned())].into());
        for priority in Priority::ALL {
            assert_eq!(parse(priority.as_str()).unwrap(), Some(priority));
        }
        let why = "annotations.org.pouch.priority: \"best-efort\" is no priority: the nearest is best-effort";
        assert_eq!(parse("best-efort").unwrap_err().to_string(), why);
        assert_eq!(of(&BTreeMap::new()).unwrap(), None);
    }
}
