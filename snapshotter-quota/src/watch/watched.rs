//! What is known of one snapshot's limits, and which events follow from what is seen of it. Pure:
//! it asks nobody.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use crate::{
    backend::Charge,
    events::What,
    limit::{Inodes, Mode, Size, Thresholds},
    writables::Writable,
};

use super::{
    gauge::{Gauge, Level, Share, Step},
    pace::{self, Approach},
};

/// A limit that writing can meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// The limit on bytes.
    Bytes,
    /// The limit on inodes.
    Inodes,
    /// The soft limit on bytes.
    Soft,
    /// The soft limit once its grace time is over: only the kernel knows when that is.
    Grace,
}

impl Line {
    const ALL: [Self; 4] = [Self::Bytes, Self::Inodes, Self::Soft, Self::Grace];
}

/// Why an event is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The kernel said that a write was refused.
    Refusal,
    /// Usage was read, and the limit of the kernel.
    Look,
    /// Usage was read, and nobody enforces the limit.
    Count,
}

/// An event, before it has a time and a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) what: What,
    pub(super) text: String,
}

/// One snapshot.
#[derive(Debug, Default)]
pub(super) struct Watched {
    gauges: [Gauge; Line::ALL.len()],
    last: Option<(Instant, Charge)>,
}

impl Watched {
    /// The kernel has told of a line.
    pub(super) fn refused(&mut self, now: Instant, line: Line, of: &Writable) -> Option<Finding> {
        let step = self.gauges[line as usize].refused(now)?;
        Some(finding(step, line, Cause::Refusal, of))
    }

    /// Usage and limit were read.
    pub(super) fn seen(&mut self, now: Instant, charge: &Charge, of: &Writable) -> Vec<Finding> {
        self.last = Some((now, *charge));
        let mut findings = Vec::new();
        for (line, share) in Line::ALL.into_iter().zip(&shares(charge, of)) {
            let gauge = &mut self.gauges[line as usize];
            if line == Line::Grace && gauge.told() == Level::Clear {
                continue;
            }
            let cause = match kernel_limit(charge, line) {
                Some(_) => Cause::Look,
                None => Cause::Count,
            };
            let step = gauge.seen(now, share);
            findings.extend(step.map(|step| finding(step, line, cause, of)));
        }
        findings
    }

    /// Whether somebody waits to hear that it is below again.
    pub(super) fn is_above(&self) -> bool {
        self.gauges.iter().any(|gauge| gauge.told() > Level::Clear)
    }

    /// When it can first be told below after a write was refused.
    pub(super) fn settles(&self) -> Option<Instant> {
        let quiet = self.gauges.iter().filter_map(Gauge::quiet_until);
        quiet.max()
    }

    /// How long it need not be looked at after this look.
    pub(super) fn pause(
        &self,
        longest: Duration,
        before: Option<(Instant, Charge)>,
        of: &Writable,
    ) -> Duration {
        let Some((now, charge)) = &self.last else {
            return longest;
        };
        let approaches = shares(charge, of).into_iter().zip(Line::ALL);
        let approaches = approaches.filter_map(|(share, line)| {
            let (left, most) = share.ahead()?;
            let (within, grown) = match &before {
                Some((then, earlier)) => (
                    now.duration_since(*then),
                    used(charge, line).saturating_sub(used(earlier, line)),
                ),
                None => (Duration::ZERO, 0),
            };
            Some(Approach {
                left,
                most,
                grown,
                within,
            })
        });
        let pauses = approaches.map(|approach| pace::pause(longest, Some(&approach)));
        pauses.min().unwrap_or(longest)
    }

    /// What was seen last, and when.
    pub(super) fn last(&self) -> Option<(Instant, Charge)> {
        self.last
    }
}

/// Whether anything can be told of a snapshot.
pub(super) fn is_worth_watching(of: &Writable) -> bool {
    of.limit.mode != Mode::Off && (of.is_limited() || of.record.group().is_some())
}

fn used(charge: &Charge, line: Line) -> u64 {
    match line {
        Line::Bytes | Line::Soft | Line::Grace => charge.usage.bytes,
        Line::Inodes => charge.usage.inodes,
    }
}

fn kernel_limit(charge: &Charge, line: Line) -> Option<u64> {
    match line {
        Line::Bytes => charge.bytes_max,
        Line::Inodes => charge.inodes_max,
        Line::Soft | Line::Grace => charge.bytes_soft,
    }
}

/// Of each line, in their order. The kernel's limits, which for a group are those of all members;
/// in mode `account` it has none, and those that were decided count. While the limit is lifted
/// there is nothing to be near to.
fn shares<'a>(charge: &Charge, of: &'a Writable) -> [Share<'a>; Line::ALL.len()] {
    let limit = &of.limit;
    let is_lifted = of.lifted_until.is_some();
    let most = |kernel: Option<u64>, decided: Option<NonZeroU64>| {
        let decided = decided.filter(|_| limit.mode == Mode::Account);
        kernel
            .or(decided.map(NonZeroU64::get))
            .filter(|_| !is_lifted)
    };
    let bytes = most(charge.bytes_max, limit.bytes.map(Size::bytes));
    let soft = most(charge.bytes_soft, limit.soft_bytes.map(Size::bytes));
    let inodes = most(charge.inodes_max, limit.inodes.map(Inodes::count));
    let soft = Share::exact(charge.usage.bytes, soft, Thresholds::NONE);
    [
        Share::of_bytes(charge.usage.bytes, bytes, &limit.warn),
        Share::exact(charge.usage.inodes, inodes, &limit.warn),
        soft,
        soft,
    ]
}

fn finding(step: Step, line: Line, cause: Cause, of: &Writable) -> Finding {
    let what = match (step, line) {
        (Step::Down(_), _) => What::Below,
        (Step::Up(Level::Full), Line::Bytes | Line::Inodes | Line::Grace) => What::Full,
        (Step::Up(_), _) => What::Near,
    };
    let text = match line {
        Line::Bytes => of_hard_limit(step, "bytes", cause),
        Line::Inodes => of_hard_limit(step, "inodes", cause),
        Line::Soft => of_soft_limit(step, "the soft limit is passed"),
        Line::Grace => of_soft_limit(
            step,
            "a write was refused: the soft limit was passed for longer than its grace time",
        ),
    };
    let text = match of.record.group() {
        Some(group) => format!("{text}, by all of the group {group}"),
        None => text,
    };
    Finding { what, text }
}

fn of_soft_limit(step: Step, up: &str) -> String {
    match step {
        Step::Up(_) => up.to_owned(),
        Step::Down(_) => "the usage is below the soft limit again".to_owned(),
    }
}

fn of_hard_limit(step: Step, noun: &str, cause: Cause) -> String {
    match (step, cause) {
        (Step::Up(Level::Full), Cause::Refusal) => {
            format!("a write was refused at the limit of {noun}")
        }
        (Step::Up(Level::Full), Cause::Look) => format!("the limit of {noun} is reached"),
        (Step::Up(Level::Full), Cause::Count) => {
            format!("the limit of {noun} is reached, which is not enforced: the mode is account")
        }
        (Step::Up(Level::Near(percent)), _) => {
            format!("{percent}% of the limit of {noun} are used")
        }
        (Step::Down(Level::Near(percent)), _) => {
            format!("less of the limit of {noun} is used again, but still about {percent}%")
        }
        (Step::Down(_) | Step::Up(Level::Clear), _) => {
            format!("the usage is well below the limit of {noun} again")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use snapshot_core::{Key, Usage};

    use super::*;
    use crate::{
        backend::Record,
        limit::{Group, Limit},
        watch::gauge::QUIET,
    };

    const MIB: u64 = 1 << 20;

    fn writable(mode: Mode) -> Writable {
        let record = Record::Prjquota {
            project: 7,
            group: None,
        };
        let limit = Limit {
            mode,
            bytes: Size::from_bytes(100 * MIB),
            soft_bytes: Size::from_bytes(50 * MIB),
            inodes: Inodes::new(1000),
            warn: "80%".parse().unwrap(),
            group: None,
        };
        let key = Key::new("ns/1/web").unwrap();
        Writable::new(key, PathBuf::from("/r/snapshots/1"), record, limit)
    }

    /// As the kernel answers for it.
    fn charge(of: &Writable, mib: u64, inodes: u64) -> Charge {
        let limit = Some(&of.limit).filter(|limit| limit.mode == Mode::Hard);
        Charge {
            usage: Usage {
                bytes: mib * MIB,
                inodes,
            },
            bytes_max: limit.and_then(|limit| Some(limit.bytes?.bytes().get())),
            bytes_soft: limit.and_then(|limit| Some(limit.soft_bytes?.bytes().get())),
            inodes_max: limit.and_then(|limit| Some(limit.inodes?.count().get())),
        }
    }

    /// A snapshot and a clock that goes on by one QUIET with each look.
    struct Scene {
        of: Writable,
        watched: Watched,
        now: Instant,
    }

    impl Scene {
        fn new(mode: Mode) -> Self {
            Self {
                of: writable(mode),
                watched: Watched::default(),
                now: Instant::now(),
            }
        }

        fn seen(&mut self, mib: u64, inodes: u64) -> Vec<(What, String)> {
            self.now += QUIET;
            let charge = charge(&self.of, mib, inodes);
            let found = self.watched.seen(self.now, &charge, &self.of);
            found.into_iter().map(|one| (one.what, one.text)).collect()
        }

        fn refused(&mut self, line: Line) -> Option<What> {
            let found = self.watched.refused(self.now, line, &self.of);
            found.map(|found| found.what)
        }
    }

    fn whats(found: &[(What, String)]) -> Vec<What> {
        found.iter().map(|(what, _)| *what).collect()
    }

    #[test]
    fn each_limit_is_told_of_for_itself() {
        let mut scene = Scene::new(Mode::Hard);
        assert_eq!(scene.seen(10, 10), []);
        let found = scene.seen(60, 900);
        assert_eq!(whats(&found), [What::Near, What::Near]);
        assert!(
            found[0].1.contains("80% of the limit of inodes"),
            "{found:?}"
        );
        assert!(found[1].1.contains("soft limit"), "{found:?}");
        assert_eq!(whats(&scene.seen(100, 900)), [What::Full]);
        assert!(scene.watched.is_above());
        let all = [What::Below, What::Below, What::Below];
        assert_eq!(whats(&scene.seen(0, 0)), all);
        assert!(!scene.watched.is_above());
    }

    #[test]
    fn refusals_are_told_at_once_and_once() {
        let mut scene = Scene::new(Mode::Hard);
        assert_eq!(scene.refused(Line::Bytes), Some(What::Full));
        assert_eq!(scene.refused(Line::Bytes), None);
        assert_eq!(scene.refused(Line::Inodes), Some(What::Full));
        assert_eq!(scene.refused(Line::Soft), Some(What::Near));
        assert_eq!(scene.refused(Line::Grace), Some(What::Full));
        let found = scene.seen(70, 0);
        assert_eq!(whats(&found), [What::Below, What::Below]);
        assert!(found[0].1.contains("bytes"), "{found:?}");
        assert!(found[1].1.contains("inodes"), "{found:?}");
        // Soft limit and grace time.
        assert_eq!(whats(&scene.seen(0, 0)), [What::Below, What::Below]);
        // Looking alone never finds that the grace time is over.
        assert_eq!(whats(&scene.seen(60, 0)), [What::Near]);
    }

    #[test]
    fn in_mode_account_numbers_are_warned_about_and_said_not_to_hold() {
        let mut scene = Scene::new(Mode::Account);
        let found = scene.seen(200, 0);
        assert_eq!(whats(&found), [What::Full, What::Near]);
        assert!(found[0].1.contains("not enforced"), "{found:?}");
    }

    #[test]
    fn nothing_is_near_while_the_limit_is_lifted() {
        for mode in [Mode::Hard, Mode::Account] {
            let mut scene = Scene::new(mode);
            scene.seen(90, 0);
            scene.of.lifted_until = Some(std::time::SystemTime::UNIX_EPOCH);
            assert_eq!(whats(&scene.seen(200, 0)), [What::Below, What::Below]);
            scene.of.lifted_until = None;
            assert_eq!(whats(&scene.seen(200, 0)), [What::Full, What::Near]);
        }
    }

    #[test]
    fn members_of_a_group_have_its_limit() {
        let mut scene = Scene::new(Mode::Account);
        scene.of.limit = Limit::counted();
        assert!(!is_worth_watching(&scene.of));
        let group = Group {
            namespace: "ns".to_owned(),
            name: "pod".parse().unwrap(),
        };
        scene.of.record = Record::Prjquota {
            project: 7,
            group: Some(group),
        };
        assert!(is_worth_watching(&scene.of));
        let shared = Charge {
            bytes_max: Some(100 * MIB),
            ..charge(&scene.of, 100, 1)
        };
        let found = scene.watched.seen(scene.now, &shared, &scene.of);
        assert_eq!(found[0].what, What::Full);
        let text = "the limit of bytes is reached, by all of the group ns/pod";
        assert_eq!(found[0].text, text);
        scene.of.limit = Limit::off();
        assert!(!is_worth_watching(&scene.of));
    }

    #[test]
    fn pauses_follow_the_limit_that_is_nearest() {
        let longest = Duration::from_secs(10);
        let mut scene = Scene::new(Mode::Hard);
        assert_eq!(scene.watched.pause(longest, None, &scene.of), longest);
        scene.seen(0, 0);
        let pause = |scene: &Scene, before| scene.watched.pause(longest, before, &scene.of);
        assert_eq!(pause(&scene, None), longest);
        let before = scene.watched.last();
        scene.seen(0, 795);
        assert_eq!(pause(&scene, None), Duration::from_secs(1));
        scene.seen(20, 0);
        let quick = pause(&scene, before);
        assert!(quick < Duration::from_secs(2), "{quick:?}");
        scene.seen(20, 0);
        assert_eq!(pause(&scene, scene.watched.last()), longest);
    }
}
