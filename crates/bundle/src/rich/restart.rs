//! Whether the program of a rich container is started again when it has ended.

use std::collections::BTreeMap;

use launch::plan::{Process, Restart};

use super::{RESTART, annotation};
use crate::annotations::nearest;
use crate::{Error, Result};

const POLICIES: [(&str, Restart); 3] = [
    ("no", Restart::Never),
    ("on-failure", Restart::OnFailure),
    ("always", Restart::Always),
];

/// What these annotations ask for.
///
/// # Errors
/// [`Error::Invalid`] for another word.
pub(super) fn of(annotations: &BTreeMap<String, String>) -> Result<Restart> {
    let Some(word) = annotations.get(RESTART) else {
        return Ok(Restart::Never);
    };
    match POLICIES.iter().find(|(known, _)| known == word) {
        Some((_, policy)) => Ok(*policy),
        None => {
            let hint = nearest(&POLICIES.map(|(word, _)| word), word).unwrap_or_default();
            let why = format!("{word:?} is no restart policy: the nearest is {hint}");
            Err(Error::invalid(annotation(RESTART), why))
        }
    }
}

/// Refuses what does not go together with it.
///
/// # Errors
/// [`Error::Invalid`] for a program on a terminal.
pub(crate) fn check_terminal(restart: Restart, program: &Process) -> Result<()> {
    if restart != Restart::Never && program.terminal.is_some() {
        let why = "a terminal ends with the program that has it, and process.terminal is true";
        return Err(Error::invalid(annotation(RESTART), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_one_of_three_words() {
        let parse = |word: &str| of(&[(RESTART.to_owned(), word.to_owned())].into());
        for (word, policy) in POLICIES {
            assert_eq!(parse(word).unwrap(), policy);
        }
        let why = "annotations.org.pouch.rich.restart: \"on-fail\" is no restart policy: the nearest \
                   is on-failure";
        assert_eq!(parse("on-fail").unwrap_err().to_string(), why);
        assert_eq!(of(&BTreeMap::new()).unwrap(), Restart::Never);
    }
}
