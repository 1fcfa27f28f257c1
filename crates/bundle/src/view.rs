//! What a container's programs see of the machine's resources: the host's, or its own limits.
//!
//! Only what was asked for is read here; whether there is an lxcfs is a fact of the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::annotations::nearest;
use crate::{Error, Result};

/// Whose resources are seen: `lxcfs` or `host`.
pub const VIEW: &str = "org.pouch.view";

/// The same in PouchContainer's words: `true` or `false`.
pub const POUCH_LXCFS: &str = "io.kubernetes.lxcfs.enabled";

const WORDS: [(&str, View); 2] = [("lxcfs", View::Lxcfs), ("host", View::Host)];

/// Whose resources `/proc` and `/sys/devices/system/cpu` show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// The host's, as the kernel has it.
    #[default]
    Host,
    /// The container's limits and its own uptime, by the lxcfs that runs on the host.
    Lxcfs,
}

impl View {
    /// What the annotations of a container ask for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another word than the known ones, and for two that contradict each
    /// other.
    pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let ours = annotations.get(VIEW).map(|word| ours(word)).transpose()?;
        let theirs = annotations.get(POUCH_LXCFS).map(|word| theirs(word));
        let theirs = theirs.transpose()?;
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let why = format!(
                    "{:?}, but annotations.{POUCH_LXCFS} is {:?}",
                    annotations[VIEW], annotations[POUCH_LXCFS]
                );
                Err(Error::invalid(format!("annotations.{VIEW}"), why))
            }
            (Some(view), _) | (None, Some(view)) => Ok(view),
            (None, None) => Ok(Self::Host),
        }
    }
}

fn ours(word: &str) -> Result<View> {
    if let Some((_, view)) = WORDS.iter().find(|(known, _)| *known == word) {
        return Ok(*view);
    }
    let hint = nearest(&WORDS.map(|(known, _)| known), word).unwrap_or_default();
    let why = format!("{word:?} is no view: the nearest is {hint}");
    Err(Error::invalid(format!("annotations.{VIEW}"), why))
}

fn theirs(word: &str) -> Result<View> {
    match word {
        "true" => Ok(View::Lxcfs),
        "false" => Ok(View::Host),
        other => {
            let why = format!("{other:?} is neither true nor false");
            Err(Error::invalid(format!("annotations.{POUCH_LXCFS}"), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(annotations: &[(&str, &str)]) -> std::result::Result<View, String> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        View::of(&annotations.iter().map(own).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_view_is_asked_for_in_our_words_or_in_pouchs() {
        assert_eq!(view(&[]), Ok(View::Host));
        assert_eq!(view(&[("com.example", "lxcfs")]), Ok(View::Host));
        for (ours, theirs, expected) in [
            ("lxcfs", "true", View::Lxcfs),
            ("host", "false", View::Host),
        ] {
            assert_eq!(view(&[(VIEW, ours)]), Ok(expected));
            assert_eq!(view(&[(POUCH_LXCFS, theirs)]), Ok(expected));
            assert_eq!(view(&[(VIEW, ours), (POUCH_LXCFS, theirs)]), Ok(expected));
        }
    }

    #[test]
    fn what_is_misspelt_or_contradicts_itself_is_refused() {
        let refused = |annotations: &[(&str, &str)], why: &str| {
            assert_eq!(view(annotations).unwrap_err(), why);
        };
        refused(
            &[(VIEW, "lxfs")],
            "annotations.org.pouch.view: \"lxfs\" is no view: the nearest is lxcfs",
        );
        refused(
            &[(POUCH_LXCFS, "yes")],
            "annotations.io.kubernetes.lxcfs.enabled: \"yes\" is neither true nor false",
        );
        refused(
            &[(VIEW, "host"), (POUCH_LXCFS, "true")],
            "annotations.org.pouch.view: \"host\", but annotations.io.kubernetes.lxcfs.enabled is \
             \"true\"",
        );
    }
}
