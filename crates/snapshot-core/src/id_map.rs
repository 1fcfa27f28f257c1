//! Owners of a user namespace, as labels of a snapshot give them. Touches no disk.
//!
//! containerd ≥ 2.0 sends them to snapshotters that declare `remap-ids`, and understands the mount
//! options `uidmap=` and `gidmap=`, by which it maps the lower directories of an overlay, or a
//! bind. The upper directory is not mapped: its own owner must be the mapped root.

use mounts::IdRange;

use crate::{Error, Labels, Result};

const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";
const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// Users and groups of a snapshot, each as `INSIDE:OUTSIDE:COUNT[,..]` in a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

impl IdMap {
    /// What the labels ask for, if they do.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one label without the other, and for ranges that the kernel would
    /// refuse: empty, above 2³²−2, overlapping, or more than 340.
    pub fn from_labels(labels: &Labels) -> Result<Option<Self>> {
        let (uids, gids) = match (labels.get(UID_LABEL), labels.get(GID_LABEL)) {
            (None, None) => return Ok(None),
            (Some(uids), Some(gids)) => (uids, gids),
            (uids, _) => {
                let missing = if uids.is_some() { GID_LABEL } else { UID_LABEL };
                return Err(Error::Invalid(format!(
                    "label {missing} is missing: users and groups are mapped both or not at all"
                )));
            }
        };
        let parse = |label, text: &str| {
            let ranges = mounts::id_ranges(text);
            ranges.map_err(|why| Error::Invalid(format!("label {label} is {text:?}: {why}")))
        };
        Ok(Some(Self {
            uids: parse(UID_LABEL, uids)?,
            gids: parse(GID_LABEL, gids)?,
        }))
    }

    /// Who is root inside: user and group.
    ///
    /// # Errors
    /// [`Error::Invalid`] when nobody is.
    pub fn root(&self) -> Result<(u32, u32)> {
        let zero = |label, ranges: &[IdRange]| {
            let range = ranges.iter().find(|range| range.inside == 0);
            range.map(|range| range.outside).ok_or_else(|| {
                Error::Invalid(format!(
                    "label {label} maps no 0, so nobody could own the root"
                ))
            })
        };
        Ok((zero(UID_LABEL, &self.uids)?, zero(GID_LABEL, &self.gids)?))
    }

    /// The words by which containerd ≥ 2.0 maps what it mounts.
    #[must_use]
    pub fn mount_options(&self) -> [String; 2] {
        let text = |ranges: &[IdRange]| {
            let texts = ranges.iter().map(|range| {
                let IdRange {
                    inside,
                    outside,
                    count,
                } = range;
                format!("{inside}:{outside}:{count}")
            });
            texts.collect::<Vec<_>>().join(",")
        };
        [
            format!("uidmap={}", text(&self.uids)),
            format!("gidmap={}", text(&self.gids)),
        ]
    }

    /// Its ranges: those of users and those of groups.
    #[must_use]
    pub fn ranges(&self) -> (&[IdRange], &[IdRange]) {
        (&self.uids, &self.gids)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(uids: &str, gids: &str) -> Result<IdMap> {
        let label = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let labels = [label(UID_LABEL, uids), label(GID_LABEL, gids)];
        IdMap::from_labels(&labels.into()).map(Option::unwrap)
    }

    #[test]
    fn maps_become_mount_options_and_an_owner() {
        let map = map("0:1000:10,10:5000:20", "5:7:1,0:2000:5").unwrap();
        let options = ["uidmap=0:1000:10,10:5000:20", "gidmap=5:7:1,0:2000:5"];
        assert_eq!(map.mount_options(), options);
        assert_eq!(map.root().unwrap(), (1000, 2000));
        assert_eq!(IdMap::from_labels(&Labels::new()).unwrap(), None);
    }

    #[test]
    fn maps_that_the_kernel_would_refuse_are_refused() {
        let check = |text: &str, expected: &str| {
            let refusal = map("0:0:1", text).unwrap_err().to_string();
            assert!(refusal.starts_with(&format!("label {GID_LABEL} is {text:?}")));
            assert!(refusal.contains(expected), "{refusal}");
        };
        for text in [
            "", "0", "0:1", "0:1:2:3", "a:0:1", "-1:0:1", "+1:0:1", " 0:0:1", "0:0:1,",
        ] {
            check(text, "is not INSIDE:OUTSIDE:COUNT");
        }
        check("4294967296:0:1", "is not INSIDE:OUTSIDE:COUNT");
        check("0:0:0", "is empty or goes beyond");
        check("0:4294967295:1", "is empty or goes beyond");
        check("1:0:4294967295", "is empty or goes beyond");
        check("0:0:10,9:100:1", "ranges overlap");
        check("0:0:10,10:9:1", "ranges overlap");
        check(&vec!["0:0:1"; 341].join(","), "341 ranges");
        assert!(map("0:0:4294967295", "0:0:10,10:10:10").is_ok());
    }

    #[test]
    fn a_map_without_root_and_half_a_map_are_refused() {
        let refusal = map("0:0:1", "1:1:1")
            .unwrap()
            .root()
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("maps no 0"), "{refusal}");
        for (has, misses) in [(UID_LABEL, GID_LABEL), (GID_LABEL, UID_LABEL)] {
            let labels = [(has.to_owned(), "0:0:1".to_owned())].into();
            let refusal = IdMap::from_labels(&labels).unwrap_err().to_string();
            assert!(
                refusal.starts_with(&format!("label {misses} is missing")),
                "{refusal}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_label_is_too_odd(text in "[0-9:,a -]{0,30}") {
            if let Ok(map) = map(&text, "0:0:1") {
                prop_assert_eq!(&map.mount_options()[0], &format!("uidmap={text}"));
            }
        }
    }
}
