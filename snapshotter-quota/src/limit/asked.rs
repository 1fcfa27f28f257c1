//! What one source (labels, a rule, the defaults) asks for, and the labels it may come from.

use std::{collections::BTreeMap, str::FromStr};

use super::{GroupName, Inodes, Mode, Refusal, Size, Thresholds, Unreadable, refusal::shown};

/// Most bytes a snapshot may hold; containerd's own label (2.4), which its erofs snapshotter reads.
pub const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
/// The same as overlaybd's snapshotter calls it.
pub const DISK_QUOTA: &str = "containerd.io/snapshot/disk_quota";
/// Most inodes.
pub const INODES: &str = "containerd.io/snapshot/quota.inodes";
/// When to warn, as `80%,95%`.
pub const WARN: &str = "containerd.io/snapshot/quota.warn";
/// With whom the limit is shared.
pub const GROUP: &str = "containerd.io/snapshot/quota.group";
/// `hard`, `account` or `off`.
pub const MODE: &str = "containerd.io/snapshot/quota.mode";
/// Bytes above which the kernel's grace time runs.
pub const SOFT_SIZE: &str = "containerd.io/snapshot/quota.soft-size";

/// What begins so is ours alone.
const OURS: &str = "containerd.io/snapshot/quota.";
/// What begins so is handed on by containerd, for whatever snapshotter.
const CONTAINERDS: &str = "containerd.io/snapshot/";
/// All that we read, for hints.
const KNOWN: [&str; 7] = [MAX_SIZE, DISK_QUOTA, INODES, WARN, GROUP, MODE, SOFT_SIZE];

/// What one source asks for; `None` leaves it to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Most bytes.
    pub bytes: Option<Size>,
    /// Bytes above which the kernel's grace time runs.
    pub soft_bytes: Option<Size>,
    /// Most inodes.
    pub inodes: Option<Inodes>,
    /// When to warn.
    pub warn: Option<Thresholds>,
    /// With whom the limit is shared.
    pub group: Option<GroupName>,
    /// What is done about it.
    pub mode: Option<Mode>,
}

impl Asked {
    /// Reads the labels of a snapshot; those that are not ours do not matter.
    ///
    /// # Errors
    /// [`Refusal`] for a value that is none, a label of ours that is not known, or two that
    /// contradict each other.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        let unknown = labels
            .keys()
            .find(|label| is_meant_for_us(label) && !KNOWN.contains(&label.as_str()));
        if let Some(label) = unknown {
            return Err(Refusal::UnknownLabel {
                nearest: nearest(label),
                label: shown(label),
            });
        }
        Ok(Self {
            bytes: same_size(value(labels, MAX_SIZE)?, value(labels, DISK_QUOTA)?)?,
            soft_bytes: value(labels, SOFT_SIZE)?,
            inodes: value(labels, INODES)?,
            warn: value(labels, WARN)?,
            group: value(labels, GROUP)?,
            mode: value(labels, MODE)?,
        })
    }

    /// This, and where it says nothing, what the other says.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            bytes: self.bytes.or(other.bytes),
            soft_bytes: self.soft_bytes.or(other.soft_bytes),
            inodes: self.inodes.or(other.inodes),
            warn: self.warn.or_else(|| other.warn.clone()),
            group: self.group.or_else(|| other.group.clone()),
            mode: self.mode.or(other.mode),
        }
    }
}

/// Whether a label is ours, or one of those spelt otherwise (`max_size`, `maxSize`, `Max-Size`): a
/// container without the limit that somebody wrote down would be a surprise.
fn is_meant_for_us(label: &str) -> bool {
    let letters = |label: &str| -> String {
        let letters = label.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|letter| letter.to_ascii_lowercase()).collect()
    };
    label.starts_with(OURS)
        || label.starts_with(CONTAINERDS) && {
            let asked = letters(label);
            asked == letters(OURS) || KNOWN.iter().any(|known| letters(known) == asked)
        }
}

fn value<T>(labels: &BTreeMap<String, String>, label: &'static str) -> Result<Option<T>, Refusal>
where
    T: FromStr<Err = Unreadable>,
{
    let read = labels.get(label).map(|text| text.parse::<T>());
    read.transpose().map_err(|why| why.in_label(label))
}

/// Both labels mean the same, so one of them may be missing, but they may not differ.
fn same_size(standard: Option<Size>, alias: Option<Size>) -> Result<Option<Size>, Refusal> {
    match (standard, alias) {
        (Some(left), Some(right)) if left != right => Err(Refusal::Contradiction {
            left: format!("{MAX_SIZE}={left}"),
            right: format!("{DISK_QUOTA}={right}"),
            why: "both name the same limit, so one is enough",
        }),
        _ => Ok(standard.or(alias)),
    }
}

/// By the last word: the prefix is where people differ, and not what they meant.
fn nearest(label: &str) -> &'static str {
    let word = |label: &str| label[label.rfind(['.', '/']).map_or(0, |at| at + 1)..].to_owned();
    // A long word is no slip, and the distance is quadratic.
    let meant: String = word(label).chars().take(64).collect();
    if ["size", "limit", "bytes"].contains(&meant.as_str()) {
        return MAX_SIZE;
    }
    KNOWN
        .into_iter()
        .min_by_key(|known| strsim::levenshtein(&word(known), &meant))
        .expect("KNOWN is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn all_labels_are_read_and_foreign_ones_do_not_matter() {
        let asked = Asked::from_labels(&labels(&[
            (MAX_SIZE, "10g"),
            (DISK_QUOTA, "10737418240"),
            (SOFT_SIZE, "8g"),
            (INODES, "1000"),
            (WARN, "90%"),
            (GROUP, "pod"),
            (MODE, "account"),
            ("containerd.io/snapshot/cri.image-ref", "x"),
            ("quota.nonsense", "x"),
        ]))
        .unwrap();
        let expected = Asked {
            bytes: Size::from_bytes(10 << 30),
            soft_bytes: Size::from_bytes(8 << 30),
            inodes: Inodes::new(1000),
            warn: Some("90%".parse().unwrap()),
            group: Some("pod".parse().unwrap()),
            mode: Some(Mode::Account),
        };
        assert_eq!(asked, expected);
        let nothing = Asked::from_labels(&labels(&[("a", "b")])).unwrap();
        assert_eq!(nothing, Asked::default());
    }

    #[test]
    fn the_size_may_have_either_name() {
        for label in [MAX_SIZE, DISK_QUOTA] {
            let asked = Asked::from_labels(&labels(&[(label, "4k")])).unwrap();
            assert_eq!(asked.bytes, Size::from_bytes(4096), "{label}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |pairs: &[(&str, &str)], expected: &str| {
            let error = Asked::from_labels(&labels(pairs)).unwrap_err().to_string();
            assert!(error.contains(expected), "{pairs:?}: {error}");
        };
        check(
            &[("containerd.io/snapshot/quota.inode", "1")],
            "the nearest known one is containerd.io/snapshot/quota.inodes",
        );
        check(
            &[("containerd.io/snapshot/quota.max-size", "1")],
            "the nearest known one is containerd.io/snapshot/max-size",
        );
        for word in ["size", "limit"] {
            let label = format!("containerd.io/snapshot/quota.{word}");
            check(&[(&label, "1")], "is containerd.io/snapshot/max-size");
        }
        for slip in [
            "max_size",
            "maxSize",
            "Max-Size",
            "disk-quota",
            "Quota.inodes",
        ] {
            let label = format!("containerd.io/snapshot/{slip}");
            check(&[(&label, "1")], "is not known");
        }
        check(&[("containerd.io/snapshot/quota", "1")], "is not known");
        check(
            &[(
                &format!("containerd.io/snapshot/quota.{}", "x".repeat(4000)),
                "1",
            )],
            "..\" is not known",
        );
        check(&[(MAX_SIZE, "10g"), (DISK_QUOTA, "20g")], "contradict");
        check(
            &[(MAX_SIZE, "ten")],
            "label containerd.io/snapshot/max-size: \"ten\"",
        );
        check(&[(MODE, "soft")], "hard, account and off");
        check(&[(GROUP, "")], "quota.group: \"\" is empty");
    }

    #[test]
    fn the_nearer_source_wins_field_by_field() {
        let label = Asked::from_labels(&labels(&[(MAX_SIZE, "1g")])).unwrap();
        let rule = Asked::from_labels(&labels(&[(MAX_SIZE, "2g"), (INODES, "7")])).unwrap();
        let both = label.or(&rule);
        assert_eq!(both.bytes, Size::from_bytes(1 << 30));
        assert_eq!(both.inodes, Inodes::new(7));
    }
}
