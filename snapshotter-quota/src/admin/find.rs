//! Which snapshots a person means: a key, a name, or the beginning of a name.

use std::{collections::BTreeMap, ops::ControlFlow};

use snapshot_core::{Error as CoreError, Kind, Snapshot, Snapshots};

use crate::{Error, Result, limit::Request};

/// Shorter beginnings fit too much by accident.
const BEGINNING_BYTES_MIN: usize = 4;

/// As many are named when a name fits several.
const NAMED_MAX: usize = 5;

/// How well a name fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Beginning,
    Name,
    Key,
}

fn fit(asked: &str, key: &str) -> Option<Fit> {
    let labels = BTreeMap::new();
    let name = Request {
        key,
        parent: None,
        labels: &labels,
    }
    .name();
    if key == asked {
        Some(Fit::Key)
    } else if name == asked {
        Some(Fit::Name)
    } else if asked.len() >= BEGINNING_BYTES_MIN && name.starts_with(asked) {
        Some(Fit::Beginning)
    } else {
        None
    }
}

/// All that fit best; of all kinds when `wanted` says so.
///
/// # Errors
/// What keeps the store from being read.
pub(super) fn all(
    snapshots: &Snapshots,
    asked: &str,
    wanted: impl Fn(Kind) -> bool,
) -> Result<Vec<Snapshot>> {
    let mut best = Vec::new();
    let mut best_fit = None;
    snapshots.each(|snapshot| {
        let fit = match asked {
            "" => Some(Fit::Key),
            _ => fit(asked, snapshot.info.name.as_str()),
        };
        if wanted(snapshot.info.kind) && fit.is_some() && fit >= best_fit {
            if fit > best_fit {
                best.clear();
                best_fit = fit;
            }
            best.push(snapshot);
        }
        ControlFlow::Continue(())
    })?;
    Ok(best)
}

/// The one writable snapshot that is meant.
///
/// # Errors
/// [`Error::NoSuch`]; [`CoreError::Precondition`] for what cannot be written to;
/// [`CoreError::Invalid`] names some when there are several.
pub(super) fn one(snapshots: &Snapshots, asked: &str) -> Result<Snapshot> {
    if asked.is_empty() {
        return Err(CoreError::Invalid("no snapshot is named".to_owned()).into());
    }
    let mut found = all(snapshots, asked, |kind| kind == Kind::Active)?;
    match (found.pop(), found.as_slice()) {
        (None, _) => Err(not_writable(snapshots, asked)?),
        (Some(one), []) => Ok(one),
        (Some(last), others) => {
            let names = others.iter().chain([&last]);
            let named: Vec<_> = names
                .map(|snapshot| snapshot.info.name.as_str())
                .take(NAMED_MAX)
                .collect();
            Err(CoreError::Invalid(format!(
                "{asked:?} fits {} writable snapshots: {}{}; name one by its key",
                others.len() + 1,
                named.join(", "),
                if others.len() < NAMED_MAX { "" } else { ", .." }
            ))
            .into())
        }
    }
}

/// Why no writable snapshot is meant.
fn not_writable(snapshots: &Snapshots, asked: &str) -> Result<Error> {
    let found = all(snapshots, asked, |_| true)?;
    Ok(match found.first() {
        None => Error::NoSuch(asked.to_owned()),
        Some(snapshot) => {
            let what = match snapshot.info.kind {
                Kind::View => "a view",
                Kind::Committed => "a committed snapshot",
                Kind::Active => "writable now",
            };
            let key = snapshot.info.name.as_str();
            let why = format!("{key} is {what}, and only writable snapshots have limits");
            CoreError::Precondition(why).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fit_better_than_names_and_names_better_than_beginnings() {
        let key = "k8s.io/7/0123456789ab";
        assert_eq!(fit(key, key), Some(Fit::Key));
        assert_eq!(fit("0123456789ab", key), Some(Fit::Name));
        assert_eq!(fit("0123", key), Some(Fit::Beginning));
        assert_eq!(fit("012", key), None);
        assert_eq!(fit("k8s.io", key), None);
        assert_eq!(fit("1234", key), None);
        assert!(Fit::Key > Fit::Name && Fit::Name > Fit::Beginning);
        assert_eq!(fit("plain", "plain"), Some(Fit::Key));
    }
}
