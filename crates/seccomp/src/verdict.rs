//! What a profile says about each number of an architecture, in libseccomp's reading of the rules.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::names;
use crate::{Arch, Arg, Error, Operator, Profile, Rule};

const FULL: u64 = u64::MAX;
const ENOSYS: u32 = 38;
const ARGUMENTS: u32 = 6;

/// What happens to a system call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Always the same.
    Return(u32),
    /// The first case whose tests all hold, else the default.
    Cases(Vec<Case>),
}

/// A conditional rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Case {
    /// All must hold; by argument, ascending.
    pub(crate) tests: Vec<Test>,
    /// The verdict.
    pub(crate) ret: u32,
}

/// A comparison of an argument. `value` has no bits outside `mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Test {
    pub(crate) index: u32,
    pub(crate) op: Operator,
    pub(crate) mask: u64,
    pub(crate) value: u64,
}

/// What a profile says on one architecture.
#[derive(Debug)]
pub(crate) struct Verdicts {
    /// Numbers with rules; all others have the default.
    pub(crate) numbers: BTreeMap<u32, Verdict>,
    /// The highest number the profile knows of; above it, ENOSYS tells the caller to fall back
    /// (runc's patchbpf). None: the default lets calls through, or the profile names none.
    pub(crate) newest: Option<u32>,
}

/// The answer to system calls newer than the profile.
pub(crate) const RETURN_ENOSYS: u32 = 0x0005_0000 | ENOSYS;

impl Verdicts {
    /// # Errors
    /// [`Error`] of the first bad rule; names that resolved are taken out of `unknown`.
    pub(crate) fn of(
        profile: &Profile,
        arch: Arch,
        unknown: &mut BTreeSet<String>,
    ) -> Result<Self, Error> {
        let default = profile.default_action.return_value(profile.default_errno)?;
        let mut cases: BTreeMap<u32, (&str, Vec<Case>)> = BTreeMap::new();
        let mut newest = None;
        for rule in &profile.rules {
            let ret = rule.action.return_value(rule.errno_ret)?;
            for name in &rule.names {
                let alternatives = alternatives(rule, name)?;
                let direct = names::number(arch, name);
                let multiplexed = names::multiplexed(arch, name);
                newest = newest
                    .max(direct)
                    .max(multiplexed.map(|(number, _)| number));
                if direct.is_some() || multiplexed.is_some() {
                    unknown.remove(name);
                }
                // libseccomp refuses rules equal to the default; runc leaves them out.
                if ret == default {
                    continue;
                }
                for args in &alternatives {
                    let direct = direct.map(|number| (number, tests(arch, args)));
                    let indirect =
                        multiplexed.map(|(number, sub)| (number, indirect(arch, args, sub)));
                    for (number, tests) in direct.into_iter().chain(indirect) {
                        let (_, cases) = cases.entry(number).or_insert((name, Vec::new()));
                        cases.push(Case { tests, ret });
                    }
                }
            }
        }
        let numbers = cases
            .into_iter()
            .map(|(number, (name, cases))| Ok((number, verdict(name, cases)?)))
            .collect::<Result<_, Error>>()?;
        let newest = newest.filter(|_| !profile.default_action.lets_through());
        Ok(Self { numbers, newest })
    }
}

/// The conditions of a rule, one list per way to match it: several conditions on the same argument
/// are taken as one rule each, as runc does.
fn alternatives(rule: &Rule, name: &str) -> Result<Vec<Vec<Arg>>, Error> {
    if name.is_empty() {
        return Err(Error::EmptyName);
    }
    if let Some(arg) = rule.args.iter().find(|a| a.index >= ARGUMENTS) {
        return Err(Error::ArgumentIndex {
            name: name.to_owned(),
            index: arg.index,
        });
    }
    let distinct: BTreeSet<u32> = rule.args.iter().map(|a| a.index).collect();
    if distinct.len() == rule.args.len() {
        Ok(vec![rule.args.clone()])
    } else {
        Ok(rule.args.iter().map(|arg| vec![*arg]).collect())
    }
}

/// Conditions in comparable form, without those that always hold.
fn tests(arch: Arch, args: &[Arg]) -> Vec<Test> {
    let width = if arch.is_32_bit() {
        u64::from(u32::MAX)
    } else {
        FULL
    };
    let mut tests: Vec<Test> = args
        .iter()
        .map(|arg| {
            let (mask, value) = match arg.op {
                Operator::MaskedEqual => (arg.value & width, arg.value_two),
                _ => (width, arg.value),
            };
            Test {
                index: arg.index,
                op: arg.op,
                mask,
                value: value & mask,
            }
        })
        .filter(|test| test.mask != 0)
        .collect();
    tests.sort_by_key(|t| t.index);
    tests
}

/// The conditions as they are checked behind a multiplexing call: its first argument selects, the
/// others stay (libseccomp's non-strict mode: what they point at cannot be seen).
fn indirect(arch: Arch, args: &[Arg], sub: u32) -> Vec<Test> {
    let selects = Arg {
        index: 0,
        value: u64::from(sub),
        value_two: 0,
        op: Operator::Equal,
    };
    let mut args: Vec<Arg> = args.iter().copied().filter(|a| a.index != 0).collect();
    args.push(selects);
    tests(arch, &args)
}

fn verdict(name: &str, mut cases: Vec<Case>) -> Result<Verdict, Error> {
    // An unconditional rule swallows all conditional ones, and the first of several stays.
    if let Some(case) = cases.iter().find(|c| c.tests.is_empty()) {
        return Ok(Verdict::Return(case.ret));
    }
    cases.sort_by_cached_key(|case| case.tests.iter().map(order).collect::<Vec<_>>());
    let mut known: BTreeMap<&[Test], u32> = BTreeMap::new();
    for case in &cases {
        if *known.entry(&case.tests).or_insert(case.ret) != case.ret {
            return Err(Error::Conflict {
                name: name.to_owned(),
            });
        }
    }
    cases.dedup();
    Ok(Verdict::Cases(cases))
}

/// libseccomp's order between rules of one system call (db.c, `_db_chain_lt`): higher arguments
/// first, equalities before limits, then the narrower limit.
fn order(test: &Test) -> (Reverse<u32>, u8, Reverse<u64>) {
    let (rank, value) = match test.op {
        Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => (0, test.value),
        Operator::Less | Operator::LessOrEqual => (1, !test.value),
        Operator::Greater | Operator::GreaterOrEqual => (2, test.value),
    };
    (Reverse(test.index), rank, Reverse(value))
}
