//! Annotations that change what we do; everybody else's pass through untouched.

use std::collections::BTreeMap;

use crate::{Error, Result, priority, rich, template, traffic, view};

/// Keys below this prefix are ours; an unknown one is a mistake and is refused.
pub const PREFIX: &str = "org.pouch.";

/// Set by us, never by config.json: what of no_new_privs and system call filters a container runs
/// without because its kernel lacks it, as the operator allowed.
pub const LEFT_OUT: &str = "org.pouch.left-out";

/// How containers in virtual machines see volumes of the host: `shared` or `copied` (docs/runv.md).
pub const RUNV_VOLUMES: &str = "org.pouch.runv.volumes";

/// Which guest a container's virtual machine runs: the name of one that the operator made.
pub const GUEST: &str = "org.pouch.runv.guest";

/// Up to how much memory, in MiB, limits of a virtual machine's containers are going to be raised.
pub const RUNV_MEMORY_MAX: &str = "org.pouch.runv.memory-max";

/// Up to how many processors' time they are.
pub const RUNV_PROCESSORS_MAX: &str = "org.pouch.runv.processors-max";

/// Those that only virtual machines have.
const OF_MACHINES: &[&str] = &[RUNV_VOLUMES, GUEST, RUNV_MEMORY_MAX, RUNV_PROCESSORS_MAX];

/// The keys of ours that mean something.
pub const KNOWN: &[&str] = &[
    rich::MODE,
    rich::SIGNALS,
    rich::USER,
    rich::SERVICES,
    rich::RESTART,
    rich::components::COMPONENTS,
    view::VIEW,
    priority::PRIORITY,
    traffic::INGRESS,
    traffic::EGRESS,
    rich::ready::READY,
    rich::ready::TIMEOUT,
    template::TEMPLATE,
    rich::hooks::PRESTART,
    rich::hooks::POSTSTOP,
    rich::hooks::TIMEOUT,
    rich::hooks::FAILURE,
    RUNV_VOLUMES,
    GUEST,
    RUNV_MEMORY_MAX,
    RUNV_PROCESSORS_MAX,
];

/// Checks that every key below [`PREFIX`] is known.
///
/// # Errors
/// [`Error::Invalid`] that names the key and the nearest known one.
pub fn check(annotations: &BTreeMap<String, String>) -> Result<()> {
    check_against(KNOWN, annotations)
}

/// Refuses what only virtual machines have, for a runtime that makes none.
///
/// # Errors
/// [`Error::Unsupported`] with the annotation.
pub fn refuse_of_machines(annotations: &BTreeMap<String, String>) -> Result<()> {
    match OF_MACHINES
        .iter()
        .find(|key| annotations.contains_key(**key))
    {
        None => Ok(()),
        Some(key) => Err(Error::unsupported(
            format!("annotations.{key}"),
            "this container gets no virtual machine: use the runtime io.containerd.runv.v2",
        )),
    }
}

/// A number of seconds from 1 to that many.
pub(crate) fn seconds(key: &str, text: &str, max: u32) -> Result<u32> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds| (1..=max).contains(seconds))
        .ok_or_else(|| {
            let why = format!("{text:?} is no number of seconds from 1 to {max}");
            Error::invalid(format!("annotations.{key}"), why)
        })
}

fn check_against(known: &[&str], annotations: &BTreeMap<String, String>) -> Result<()> {
    for key in annotations.keys().filter(|k| k.starts_with(PREFIX)) {
        if known.contains(&key.as_str()) || key.starts_with(rich::services::COMMAND_OF) {
            continue;
        }
        let hint = match nearest(known, key) {
            Some(nearest) => format!("the nearest known one is {nearest}"),
            None => format!("no annotation below {PREFIX} is defined"),
        };
        return Err(Error::invalid(
            format!("annotations.{key}"),
            format!("unknown: {hint}"),
        ));
    }
    Ok(())
}

/// The known word that is most like this one: that goes on where this one ends, if there is one.
pub(crate) fn nearest<'a>(known: &[&'a str], word: &str) -> Option<&'a str> {
    let distance = |candidate: &&str| {
        let is_longer = candidate.starts_with(word);
        (!is_longer, edit_distance(candidate, word))
    };
    known.iter().copied().min_by_key(distance)
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: &[&str] = &["org.pouch.rich.mode", "org.pouch.rich.user"];

    fn check_key(key: &str, expected: Option<&str>) {
        let annotations = BTreeMap::from([(key.to_owned(), "value".to_owned())]);
        let message = check_against(SOME, &annotations)
            .err()
            .map(|error| error.to_string());
        assert_eq!(message.as_deref(), expected);
    }

    #[test]
    fn an_unknown_key_of_ours_is_refused_with_the_nearest_known_one() {
        check_key("org.pouch.rich.user", None);
        check_key("org.pouches.rich.user", None);
        check_key("com.example", None);
        check_key(
            "org.pouch.rich.moed",
            Some(
                "annotations.org.pouch.rich.moed: unknown: the nearest known one is \
                 org.pouch.rich.mode",
            ),
        );
    }

    #[test]
    fn what_only_virtual_machines_have_is_refused_elsewhere() {
        let annotations = |key: &str| BTreeMap::from([(key.to_owned(), "old".to_owned())]);
        check(&annotations(GUEST)).unwrap();
        refuse_of_machines(&annotations("com.example")).unwrap();
        let error = refuse_of_machines(&annotations(GUEST)).unwrap_err();
        let expected = "annotations.org.pouch.runv.guest is not supported: this container gets no virtual machine";
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn edits_are_counted_in_characters() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("ü", "u", 1),
            ("abc", "abc", 0),
        ] {
            assert_eq!(edit_distance(a, b), expected, "{a} {b}");
            assert_eq!(edit_distance(b, a), expected, "{b} {a}");
        }
    }
}
