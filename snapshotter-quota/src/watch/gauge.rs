//! How far one limit is used up, and which changes of that are worth telling. Pure.
//!
//! ```text
//!            80%               95%               full, or a write failed
//!   Clear ---------> Near(80) ------> Near(95) ------------> Full
//!     ^                |    ^            |                    |
//!     +----------------+    +------------+--------------------+
//!        well below it, and no write has failed for a while
//! ```
//!
//! Up is told at once. Down waits, and needs some distance: who writes until it fails, deletes a
//! little and goes on is told of once, and not thousands of times.

use std::time::{Duration, Instant};

use crate::limit::Thresholds;

/// For so long after the last write that failed, nobody is told to be below again.
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// File systems allocate in pieces: a write of 1 MiB has failed with less than that left.
const LEFT_BYTES_MIN: u64 = 1 << 20;

/// How far a limit is used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Below all thresholds.
    #[default]
    Clear,
    /// At or above this percentage.
    Near(u8),
    /// Nothing is left that a write could count on.
    Full,
}

/// A change that is worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It rose to this level.
    Up(Level),
    /// It fell to this one.
    Down(Level),
}

/// What of a limit is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share<'a> {
    used: u64,
    /// `None`: nothing is limited.
    most: Option<u64>,
    /// With no more than this left it is full.
    least: u64,
    warn: &'a Thresholds,
}

/// What was told last of one limit of one snapshot.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gauge {
    told: Level,
    quiet_until: Option<Instant>,
}

impl<'a> Share<'a> {
    /// Of a limit on bytes.
    pub(super) fn of_bytes(used: u64, most: Option<u64>, warn: &'a Thresholds) -> Self {
        Self {
            used,
            most,
            least: (LEFT_BYTES_MIN - 1).min(most.unwrap_or(0) / 64),
            warn,
        }
    }

    /// Of one that is full when it is reached, and not before.
    pub(super) fn exact(used: u64, most: Option<u64>, warn: &'a Thresholds) -> Self {
        Self {
            used,
            most,
            least: 0,
            warn,
        }
    }

    fn level(&self) -> Level {
        let Some(most) = self.most else {
            return Level::Clear;
        };
        if most.saturating_sub(self.used) <= self.least {
            return Level::Full;
        }
        let reached = self.warn.reached(self.used, most);
        reached.map_or(Level::Clear, Level::Near)
    }

    /// Whether a level that was told is still true, or nearly.
    fn holds(&self, level: Level) -> bool {
        let Some(most) = self.most else {
            return level == Level::Clear;
        };
        match level {
            Level::Clear => true,
            // Two percent of the limit below the threshold; of a tiny threshold, half of it.
            Level::Near(percent) => {
                let twice = 2 * u128::from(percent) - u128::from(percent.min(4));
                u128::from(self.used) * 200 >= u128::from(most) * twice
            }
            Level::Full => most.saturating_sub(self.used) <= (2 * self.least).max(most / 100),
        }
    }

    /// How much of the limit lies between the usage and the next threshold, and the limit itself.
    pub(super) fn ahead(&self) -> Option<(u64, u64)> {
        let most = self.most?;
        let full = most.saturating_sub(self.least);
        let bounds = self.warn.percentages().map(|percent| {
            let bound = u128::from(most) * u128::from(percent);
            u64::try_from(bound.div_ceil(100)).unwrap_or(u64::MAX)
        });
        let next = bounds.chain([full]).filter(|bound| *bound > self.used);
        next.min().map(|bound| (bound - self.used, most))
    }
}

impl Gauge {
    /// What was told last.
    pub(super) fn told(&self) -> Level {
        self.told
    }

    /// When it will have been quiet for long enough to be told below.
    pub(super) fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until
    }

    /// The kernel has refused a write.
    pub(super) fn refused(&mut self, now: Instant) -> Option<Step> {
        self.quiet_until = Some(now + QUIET);
        (self.told < Level::Full).then(|| {
            self.told = Level::Full;
            Step::Up(Level::Full)
        })
    }

    /// Usage and limit were read.
    pub(super) fn seen(&mut self, now: Instant, share: &Share<'_>) -> Option<Step> {
        let level = share.level();
        if level > self.told {
            self.told = level;
            return Some(Step::Up(level));
        }
        if self.quiet_until.is_some_and(|until| now < until) || share.holds(self.told) {
            return None;
        }
        self.quiet_until = None;
        let below = share.warn.percentages().map(Level::Near);
        let held = below.filter(|level| *level < self.told && share.holds(*level));
        self.told = held.max().unwrap_or_default();
        Some(Step::Down(self.told))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn warn(text: &str) -> Thresholds {
        text.parse().unwrap()
    }

    /// Usages of a limit of 1000, one a QUIET, and the steps they make.
    fn steps(gauge: &mut Gauge, warn: &Thresholds, usages: &[u64]) -> Vec<Step> {
        let mut now = Instant::now();
        let mut told = Vec::new();
        for used in usages {
            now += QUIET;
            told.extend(gauge.seen(now, &Share::exact(*used, Some(1000), warn)));
        }
        told
    }

    #[test]
    fn thresholds_are_told_once_on_the_way_up_and_once_on_the_way_down() {
        let warn = warn("80%,95%");
        let check = |usages: &[u64], expected: &[Step]| {
            assert_eq!(
                steps(&mut Gauge::default(), &warn, usages),
                expected,
                "{usages:?}"
            );
        };
        check(&[0, 799, 0], &[]);
        check(&[800, 801, 800], &[Step::Up(Level::Near(80))]);
        // Some distance is needed.
        check(&[800, 799, 781, 800], &[Step::Up(Level::Near(80))]);
        check(
            &[800, 779, 800],
            &[
                Step::Up(Level::Near(80)),
                Step::Down(Level::Clear),
                Step::Up(Level::Near(80)),
            ],
        );
        check(
            &[960, 1000, 995, 940, 929, 0],
            &[
                Step::Up(Level::Near(95)),
                Step::Up(Level::Full),
                Step::Down(Level::Near(95)),
                Step::Down(Level::Near(80)),
                Step::Down(Level::Clear),
            ],
        );
        check(
            &[2000, 0],
            &[Step::Up(Level::Full), Step::Down(Level::Clear)],
        );
    }

    #[test]
    fn writes_that_fail_are_told_once_until_it_has_been_quiet() {
        let warn = Thresholds::default();
        let (mut gauge, start) = (Gauge::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let half = Share::exact(500, Some(1000), &warn);
        assert_eq!(gauge.refused(at(0)), Some(Step::Up(Level::Full)));
        assert_eq!(gauge.refused(at(700)), None);
        assert_eq!(gauge.seen(at(1500), &half), None);
        assert_eq!(gauge.seen(at(1700), &half), Some(Step::Down(Level::Clear)));
        assert_eq!(gauge.refused(at(1701)), Some(Step::Up(Level::Full)));
    }

    #[test]
    fn of_bytes_a_piece_is_left_when_it_is_full() {
        let warn = Thresholds::default();
        let check = |used, most, expected| {
            let level = Share::of_bytes(used, Some(most), &warn).level();
            assert_eq!(level, expected, "{used} of {most}");
        };
        const GIB: u64 = 1 << 30;
        check(GIB - (1 << 20), GIB, Level::Clear);
        check(GIB - (1 << 20) + 1, GIB, Level::Full);
        check(64_000 - 1_001, 64_000, Level::Clear);
        check(64_000 - 1_000, 64_000, Level::Full);
        check(0, 1, Level::Clear);
        check(1, 1, Level::Full);
        check(u64::MAX, 1, Level::Full);
        check(0, u64::MAX, Level::Clear);
    }

    #[test]
    fn a_limit_that_is_changed_or_taken_away_is_told_as_usage_is() {
        let warn = warn("80%");
        let (mut gauge, mut now) = (Gauge::default(), Instant::now());
        let mut seen = |most| {
            now += QUIET;
            gauge.seen(now, &Share::exact(900, most, &warn))
        };
        assert_eq!(seen(Some(2000)), None);
        assert_eq!(seen(Some(900)), Some(Step::Up(Level::Full)));
        assert_eq!(seen(Some(1100)), Some(Step::Down(Level::Near(80))));
        assert_eq!(seen(None), Some(Step::Down(Level::Clear)));
        assert_eq!(seen(None), None);
    }

    #[test]
    fn next_bound_is_what_lies_ahead() {
        let warn = warn("80%,95%");
        let ahead = |used| Share::exact(used, Some(1000), &warn).ahead();
        assert_eq!(ahead(0), Some((800, 1000)));
        assert_eq!(ahead(800), Some((150, 1000)));
        assert_eq!(ahead(999), Some((1, 1000)));
        assert_eq!(ahead(1000), None);
        assert_eq!(Share::exact(5, None, &warn).ahead(), None);
    }

    #[derive(Debug, Clone)]
    enum Observed {
        Refused,
        Seen(u64),
        Limit(Option<u64>),
    }

    fn observed() -> impl Strategy<Value = Observed> {
        prop_oneof![
            Just(Observed::Refused),
            (0..1500_u64).prop_map(Observed::Seen),
            proptest::option::weighted(0.9, 1..2000_u64).prop_map(Observed::Limit),
        ]
    }

    proptest! {
        #[test]
        fn steps_form_a_path_and_end_where_the_usage_is(
            all in prop::collection::vec((0..2000_u64, observed()), 0..200),
            warn in "80%|80%,95%|1%,100%|3%",
        ) {
            let warn = warn.parse().unwrap();
            let (mut gauge, mut now) = (Gauge::default(), Instant::now());
            let (mut used, mut most, mut last) = (0, Some(1000), Level::Clear);
            let mut refused = None::<Instant>;
            for (ms, observed) in all {
                now += Duration::from_millis(ms);
                let step = match observed {
                    Observed::Refused => {
                        refused = Some(now);
                        let step = gauge.refused(now);
                        prop_assert_eq!(gauge.told(), Level::Full);
                        step
                    }
                    Observed::Seen(now_used) => {
                        used = now_used;
                        gauge.seen(now, &Share::exact(used, most, &warn))
                    }
                    Observed::Limit(now_most) => {
                        most = now_most;
                        gauge.seen(now, &Share::exact(used, most, &warn))
                    }
                };
                match step {
                    Some(Step::Up(level)) => prop_assert!(level > last),
                    Some(Step::Down(level)) => {
                        prop_assert!(level < last);
                        prop_assert!(refused.is_none_or(|at| now >= at + QUIET));
                    }
                    None => prop_assert_eq!(gauge.told(), last),
                }
                last = gauge.told();
                let share = Share::exact(used, most, &warn);
                if !matches!(observed, Observed::Refused) {
                    prop_assert!(last >= share.level(), "{:?} below {:?}", last, share);
                }
            }
            // In the end it settles, and then nothing is told any more.
            let share = Share::exact(used, most, &warn);
            for _ in 0..2 {
                now += QUIET;
                gauge.seen(now, &share);
            }
            prop_assert!(share.holds(gauge.told()), "{:?} at {:?}", gauge, share);
            prop_assert_eq!(gauge.seen(now + QUIET, &share), None);
        }

        #[test]
        fn usage_that_stays_within_a_percent_is_told_once(
            around in 100..1000_u64,
            moves in prop::collection::vec(0..10_u64, 1..100),
        ) {
            let warn: Thresholds = "30%,80%,95%".parse().unwrap();
            let usages: Vec<_> = moves.iter().map(|up| around + up).collect();
            let told = steps(&mut Gauge::default(), &warn, &usages);
            // Two bounds, 95% and the limit, lie within less than ten percent of each other, and
            // no two within one.
            prop_assert!(told.len() <= 2, "{:?}", told);
            prop_assert!(told.iter().all(|step| matches!(step, Step::Up(_))), "{:?}", told);
        }
    }
}
