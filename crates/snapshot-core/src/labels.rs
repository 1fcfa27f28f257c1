//! Labels from outside: bounded, and changed as containerd changes them. Touches no disk.

use crate::{Error, Labels, Result};

/// Name and value together, as containerd bounds them (pkg/labels/validate.go).
pub const LABEL_BYTES_MAX: usize = 4096;

/// Labels of one snapshot.
pub const LABELS_MAX: usize = 256;

/// What of a snapshot is to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// All labels.
    Labels,
    /// One label, by name.
    Label(String),
}

impl Field {
    /// A path of a field mask.
    ///
    /// # Errors
    /// [`Error::Invalid`] for all that cannot change.
    pub fn parse(path: &str) -> Result<Self> {
        if path == "labels" {
            return Ok(Self::Labels);
        }
        match path.strip_prefix("labels.") {
            Some(name) => Ok(Self::Label(name.to_owned())),
            None => Err(Error::Invalid(format!(
                "cannot update the field {path:?} of a snapshot: only labels and labels.NAME change"
            ))),
        }
    }
}

/// Labels as a snapshot may have them: those with an empty value go, as with containerd.
///
/// # Errors
/// [`Error::Invalid`] names the label that is too long, or says that there are too many.
pub(crate) fn checked(mut labels: Labels) -> Result<Labels> {
    labels.retain(|_, value| !value.is_empty());
    if labels.len() > LABELS_MAX {
        return Err(Error::Invalid(format!(
            "{} labels, a snapshot takes at most {LABELS_MAX}",
            labels.len()
        )));
    }
    for (name, value) in &labels {
        let bytes = name.len() + value.len();
        if bytes > LABEL_BYTES_MAX {
            let beginning: String = name.chars().take(64).collect();
            return Err(Error::Invalid(format!(
                "label {beginning:?} has {bytes} bytes with its value, at most {LABEL_BYTES_MAX} \
                 are taken"
            )));
        }
    }
    Ok(labels)
}

/// The labels after a change; no field at all means all labels.
///
/// # Errors
/// Those of [`checked`].
pub(crate) fn changed(mut labels: Labels, fields: &[Field], to: &Labels) -> Result<Labels> {
    if fields.is_empty() {
        return checked(to.clone());
    }
    for field in fields {
        match field {
            Field::Labels => labels.clone_from(to),
            Field::Label(name) => {
                let value = to.get(name).cloned().unwrap_or_default();
                labels.insert(name.clone(), value);
            }
        }
    }
    checked(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn a_mask_changes_what_it_names() {
        let check = |mask: &[&str], to: &[(&str, &str)], expected: &[(&str, &str)]| {
            let fields: Vec<_> = mask
                .iter()
                .map(|path| Field::parse(path).unwrap())
                .collect();
            let now = labels(&[("a", "1"), ("b", "2")]);
            let after = changed(now, &fields, &labels(to)).unwrap();
            assert_eq!(after, labels(expected), "{mask:?} {to:?}");
        };
        check(&[], &[("c", "3")], &[("c", "3")]);
        check(&[], &[("a", "")], &[]);
        check(&["labels"], &[("c", "3"), ("d", "")], &[("c", "3")]);
        check(
            &["labels.a"],
            &[("a", "9"), ("b", "9")],
            &[("a", "9"), ("b", "2")],
        );
        check(&["labels.a"], &[], &[("b", "2")]);
        check(&["labels.a"], &[("a", "")], &[("b", "2")]);
        check(
            &["labels.x.y/z"],
            &[("x.y/z", "1")],
            &[("a", "1"), ("b", "2"), ("x.y/z", "1")],
        );
        check(&["labels.none"], &[], &[("a", "1"), ("b", "2")]);
        check(&["labels", "labels.a"], &[("c", "3")], &[("c", "3")]);
    }

    #[test]
    fn what_cannot_change_is_refused() {
        for path in [
            "parent",
            "kind",
            "name",
            "created_at",
            "",
            "label",
            "labelsx",
            "Labels",
        ] {
            assert!(
                matches!(Field::parse(path), Err(Error::Invalid(_))),
                "{path}"
            );
        }
    }

    #[test]
    fn sizes_and_numbers_are_bounded() {
        let fits = labels(&[("k", &"v".repeat(LABEL_BYTES_MAX - 1))]);
        assert_eq!(checked(fits.clone()).unwrap(), fits);
        let refusal = |labels| checked(labels).unwrap_err().to_string();
        let long = refusal(labels(&[(&"k".repeat(100), &"v".repeat(LABEL_BYTES_MAX))]));
        assert!(
            long.starts_with(&format!("label \"{}\" has 4196", "k".repeat(64))),
            "{long}"
        );
        let many = |count: usize| {
            (0..count)
                .map(|n| (n.to_string(), "v".to_owned()))
                .collect()
        };
        assert_eq!(checked(many(LABELS_MAX)).unwrap().len(), LABELS_MAX);
        assert!(refusal(many(LABELS_MAX + 1)).starts_with("257 labels"));
    }
}
