//! Which project ids are ours, and which of them is a snapshot's; pure.

use std::fmt;

use snapshot_core::{Error, Result, SnapshotId};
use sys::project_quota::ProjectId;

/// Ids from the first to the last, of which nobody else may use any.
///
/// A snapshot's id follows from its number, which is never given twice: nothing has to be
/// remembered, and none is used again before all others were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectRange {
    first: u32,
    last: u32,
}

impl Default for ProjectRange {
    /// 0x4000_0000 to 0x7FFF_FFFF: above what Pouch, overlaybd, the kubelet and Incus begin with,
    /// below Porto's.
    fn default() -> Self {
        Self {
            first: 0x4000_0000,
            last: 0x7FFF_FFFF,
        }
    }
}

impl ProjectRange {
    /// Fewest ids: with less a number would soon come round.
    pub const COUNT_MIN: u32 = 1 << 16;

    /// Checks a range.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it has less than 65,536 ids, 0 (everybody's) or 4,294,967,295 (none).
    pub fn new(first: u32, last: u32) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::Invalid(format!(
                "the range {first} to {last} of project ids {why}"
            )))
        };
        if first == 0 {
            return refuse("has 0, which is everybody's");
        }
        if last == u32::MAX {
            return refuse("has 4294967295, which the kernel takes for none");
        }
        if last < first || last - first < Self::COUNT_MIN - 1 {
            return refuse("has less than 65536 ids");
        }
        Ok(Self { first, last })
    }

    /// The id of a snapshot.
    #[must_use]
    pub fn of(self, snapshot: SnapshotId) -> ProjectId {
        let count = u64::from(self.last - self.first) + 1;
        let offset = u32::try_from(snapshot.0 % count).expect("below a count of 32 bits");
        ProjectId(self.first + offset)
    }

    /// Whether an id is ours.
    #[must_use]
    pub fn contains(self, id: ProjectId) -> bool {
        (self.first..=self.last).contains(&id.0)
    }

    /// The first.
    #[must_use]
    pub fn first(self) -> ProjectId {
        ProjectId(self.first)
    }

    /// The last.
    #[must_use]
    pub fn last(self) -> ProjectId {
        ProjectId(self.last)
    }
}

impl fmt::Display for ProjectRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_follow_from_numbers_and_come_round_last() {
        let range = ProjectRange::default();
        assert_eq!(range.of(SnapshotId(0)), ProjectId(0x4000_0000));
        assert_eq!(range.of(SnapshotId(7)), ProjectId(0x4000_0007));
        assert_eq!(range.of(SnapshotId(0x3FFF_FFFF)), ProjectId(0x7FFF_FFFF));
        assert_eq!(range.of(SnapshotId(0x4000_0000)), ProjectId(0x4000_0000));
        assert_eq!(range.to_string(), "1073741824 to 2147483647");
    }

    #[test]
    fn ranges_that_cannot_be_ours_are_refused() {
        let check = |first, last, why: Option<&str>| {
            let error = ProjectRange::new(first, last).err();
            let error = error.map(|error| error.to_string());
            assert_eq!(error.is_some(), why.is_some(), "{first} {last}");
            if let (Some(error), Some(why)) = (error, why) {
                assert!(error.contains(why), "{error}");
            }
        };
        check(1, 65_536, None);
        check(1, 65_535, Some("less than"));
        check(0, 1_000_000, Some("everybody's"));
        check(5, 4, Some("less than"));
        check(1, u32::MAX, Some("none"));
        check(1, u32::MAX - 1, None);
    }

    proptest! {
        #[test]
        fn every_number_has_an_id_of_ours(first in 1..1_000_000_u32, more in 65_535..u32::MAX, n: u64) {
            let last = first.saturating_add(more).min(u32::MAX - 1);
            let range = ProjectRange::new(first, last).unwrap();
            prop_assert!(range.contains(range.of(SnapshotId(n))));
        }
    }
}
