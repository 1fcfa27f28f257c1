//! When which snapshot is looked at next: often while it comes near a limit, seldom else. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use snapshot_core::SnapshotId;

/// In the last part of the way to a bound, looks become as many times as frequent.
const OFTEN: u32 = 10;

/// Never more often than this.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// How usage moves towards the next bound of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Approach {
    /// What is left to it.
    pub(super) left: u64,
    /// The limit.
    pub(super) most: u64,
    /// By how much usage grew since the last look.
    pub(super) grown: u64,
    /// When that was.
    pub(super) within: Duration,
}

/// How long a snapshot need not be looked at: at most `longest`; a tenth of that shortly before a
/// bound, and no more than half of the time in which the bound is reached if it goes on like this.
pub(super) fn pause(longest: Duration, approach: Option<&Approach>) -> Duration {
    let shortest = (longest / OFTEN).max(PAUSE_MIN).min(longest);
    let Some(approach) = approach else {
        return longest;
    };
    // The last tenth of the limit before the bound.
    let last = (approach.most / u64::from(OFTEN)).max(1);
    let by_distance = scaled(longest, approach.left, last);
    let by_growth = match approach.grown {
        0 => longest,
        grown => scaled(approach.within / 2, approach.left, grown),
    };
    by_distance.min(by_growth).clamp(shortest, longest)
}

/// `duration * numerator / denominator`, without overflow.
fn scaled(duration: Duration, numerator: u64, denominator: u64) -> Duration {
    let nanoseconds = duration.as_nanos() * u128::from(numerator) / u128::from(denominator);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// Who is looked at when; empty while nobody has to be.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    by_time: BTreeSet<(Instant, SnapshotId)>,
    by_id: BTreeMap<SnapshotId, Instant>,
}

impl Agenda {
    /// Looks at one then, and not when it was planned before.
    pub(super) fn plan(&mut self, id: SnapshotId, at: Instant) {
        self.cancel(id);
        self.by_id.insert(id, at);
        self.by_time.insert((at, id));
    }

    /// Looks at one then, unless it is planned for earlier.
    pub(super) fn plan_by(&mut self, id: SnapshotId, at: Instant) {
        if self.by_id.get(&id).is_none_or(|planned| *planned > at) {
            self.plan(id, at);
        }
    }

    /// Does not look at one any more.
    pub(super) fn cancel(&mut self, id: SnapshotId) {
        if let Some(at) = self.by_id.remove(&id) {
            self.by_time.remove(&(at, id));
        }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes those that are due by then, the longest due first, and no more than so many.
    pub(super) fn take(&mut self, by: Instant, count_max: usize) -> Vec<SnapshotId> {
        let mut taken = Vec::new();
        while taken.len() < count_max
            && let Some((at, id)) = self.by_time.first().copied()
            && at <= by
        {
            self.cancel(id);
            taken.push(id);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    fn approach(left: u64, grown: u64) -> Approach {
        Approach {
            left,
            most: 1000,
            grown,
            within: Duration::from_secs(10),
        }
    }

    #[test]
    fn looks_are_frequent_near_a_bound_and_when_it_is_reached_soon() {
        let check = |left, grown, seconds: f64| {
            let pause = pause(LONGEST, Some(&approach(left, grown)));
            assert_eq!(pause, Duration::from_secs_f64(seconds), "{left} {grown}");
        };
        check(800, 0, 10.0);
        check(100, 0, 10.0);
        check(50, 0, 5.0);
        check(1, 0, 1.0);
        check(0, 0, 1.0);
        // 80 in 10 s: 800 in 100 s.
        check(800, 80, 10.0);
        check(800, 400, 10.0);
        check(800, 800, 5.0);
        check(800, 100_000, 1.0);
        assert_eq!(pause(LONGEST, None), LONGEST);
        let second = Duration::from_secs(1);
        assert_eq!(pause(second, Some(&approach(0, 0))), PAUSE_MIN);
    }

    #[test]
    fn agenda_gives_who_is_due_in_order_and_no_more_than_asked() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut agenda = Agenda::default();
        assert_eq!(agenda.next(), None);
        for (id, seconds) in [(1, 5), (2, 3), (3, 4), (4, 9)] {
            agenda.plan(SnapshotId(id), at(seconds));
        }
        agenda.plan(SnapshotId(3), at(1));
        agenda.plan_by(SnapshotId(1), at(8));
        agenda.cancel(SnapshotId(9));
        assert_eq!(agenda.next(), Some(at(1)));
        assert_eq!(agenda.take(at(5), 2), [SnapshotId(3), SnapshotId(2)]);
        assert_eq!(agenda.take(at(5), 2), [SnapshotId(1)]);
        assert_eq!(agenda.take(at(5), 2), []);
        agenda.cancel(SnapshotId(4));
        assert_eq!(agenda.next(), None);
    }

    proptest! {
        #[test]
        fn pauses_stay_within_their_bounds(
            left: u64, most: u64, grown: u64, within in 0..100_000_u64, longest in 1..3600_u64,
        ) {
            let within = Duration::from_millis(within);
            let longest = Duration::from_secs(longest);
            let found = pause(longest, Some(&Approach { left, most, grown, within }));
            prop_assert!(found <= longest && found >= PAUSE_MIN);
        }
    }
}
