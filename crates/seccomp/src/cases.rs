//! The cases of one system call: comparisons of its arguments. Neighbours share what they have in
//! common, so that each of thousands of rules about one argument costs one instruction.
//!
//! ```text
//!   load the high half, compare it          once for all values with that high half
//!   load the low half
//!   equal A? -> verdict, or further tests   one instruction a value
//!   equal B? -> ...
//! ```
//! Registers hold 32 bits, so an argument is compared by halves.

use std::collections::BTreeMap;

use crate::Operator;
use crate::assemble::{Compare, Label};
use crate::compile::Section;
use crate::verdict::{Case, Test};

/// A chain of more comparisons has stepping stones after every so many: a conditional jump reaches
/// 255 instructions, and a longer one costs an instruction each.
const CHAIN_REACH: usize = 64;

/// What cases may share: the first test but for its value.
#[derive(PartialEq)]
enum Shared {
    /// Equality on one argument under one mask: no two values hold at once.
    Equality { index: u32, mask: u64 },
    /// One test only, and all of it the same but for the low half of the value.
    Limit {
        index: u32,
        op: Operator,
        mask: u64,
        high: u32,
    },
    /// Nothing.
    Alone,
}

impl Shared {
    fn of(case: &Case) -> Self {
        let Some(test) = case.tests.first() else {
            return Self::Alone;
        };
        let Test {
            index,
            op,
            mask,
            value,
        } = *test;
        match op {
            Operator::Equal | Operator::MaskedEqual => Self::Equality { index, mask },
            _ if case.tests.len() == 1 => Self::Limit {
                index,
                op,
                mask,
                high: halves(value).0,
            },
            _ => Self::Alone,
        }
    }

    /// How many of the first cases share it.
    fn run(&self, cases: &[Case]) -> usize {
        match self {
            Self::Alone => 1,
            _ => cases
                .iter()
                .take_while(|case| Self::of(case) == *self)
                .count(),
        }
    }
}

/// One value of a chain, and what follows where it matches.
struct Link<'a> {
    compare: Compare,
    value: u32,
    wanted: Wanted,
    then: Then<'a>,
}

/// Whether a value matches where the comparison holds or where it does not.
#[derive(Clone, Copy)]
enum Wanted {
    Holds,
    Fails,
}

/// What follows a comparison.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Then<'a> {
    /// The verdict.
    Return(u32),
    /// The first of these whose tests all hold.
    Cases(Vec<Rest<'a>>),
    /// Low halves of the argument whose high half matched, in the bits of the mask.
    Lows {
        index: u32,
        mask: u32,
        values: BTreeMap<u32, Vec<Rest<'a>>>,
    },
}

impl<'a> Then<'a> {
    fn of(cases: Vec<Rest<'a>>) -> Self {
        match cases.first() {
            Some(Rest { tests: [], ret }) => Self::Return(*ret),
            _ => Self::Cases(cases),
        }
    }
}

/// A case without the tests that were made already.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rest<'a> {
    tests: &'a [Test],
    ret: u32,
}

impl Rest<'_> {
    fn case(&self) -> Case {
        Case {
            tests: self.tests.to_vec(),
            ret: self.ret,
        }
    }
}

/// A stepping stone within the reach of a conditional jump.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stone {
    Return(u32),
    Block(Label),
}

impl Section<'_> {
    /// Returns the verdict of the first case whose tests all hold, else goes on at `otherwise`.
    pub(crate) fn cases(&mut self, cases: &[Case], otherwise: Label) {
        if cases.is_empty() {
            self.out.goto(otherwise);
        }
        let mut left = cases;
        while let Some(first) = left.first() {
            let shared = Shared::of(first);
            let (run, rest) = left.split_at(shared.run(left));
            left = rest;
            let after = if left.is_empty() {
                otherwise
            } else {
                self.out.label()
            };
            match shared {
                Shared::Equality { index, mask } => self.equalities(index, mask, run, after),
                Shared::Limit {
                    index,
                    op,
                    mask,
                    high,
                } => self.limits((index, op, mask, high), run, after),
                Shared::Alone => self.alone(first, after),
            }
            if !left.is_empty() {
                self.out.here(after);
            }
        }
    }

    /// Tests of one case, one after the other.
    fn alone(&mut self, case: &Case, after: Label) {
        let matched = self.returning(case.ret);
        let Some((last, firsts)) = case.tests.split_last() else {
            self.out.goto(matched);
            return;
        };
        for test in firsts {
            let next = self.out.label();
            self.test(test, next, after);
            self.out.here(next);
        }
        self.test(last, matched, after);
    }

    fn test(&mut self, test: &Test, holds: Label, fails: Label) {
        let (high_mask, low_mask) = halves(test.mask);
        let (high, low) = halves(test.value);
        let (compare, wanted) = comparison(test.op);
        let (holds, fails) = wanted.sides(holds, fails);
        if high_mask != 0 {
            let low_half = self.out.label();
            self.load(high_offset(test.index), high_mask);
            if compare != Compare::Equal {
                let not_greater = self.out.label();
                self.out.branch(Compare::Greater, high, holds, not_greater);
                self.out.here(not_greater);
            } else if low_mask == 0 {
                self.out.branch(Compare::Equal, high, holds, fails);
                return;
            }
            self.out.branch(Compare::Equal, high, low_half, fails);
            self.out.here(low_half);
        }
        self.load(low_offset(test.index), low_mask);
        self.out.branch(compare, low, holds, fails);
    }

    /// Cases that begin with an equality of the same bits of an argument. Of different values one
    /// holds at most, so cases of the same value may come together.
    fn equalities(&mut self, index: u32, mask: u64, run: &[Case], after: Label) {
        let mut values: BTreeMap<u32, BTreeMap<u32, Vec<Rest<'_>>>> = BTreeMap::new();
        for case in run {
            let [first, tests @ ..] = case.tests.as_slice() else {
                continue; // Not of this run, which tests an argument first.
            };
            let (high, low) = halves(first.value);
            let lows = values.entry(high).or_default();
            lows.entry(low).or_default().push(Rest {
                tests,
                ret: case.ret,
            });
        }
        let (high_mask, low_mask) = halves(mask);
        if high_mask == 0 {
            let values = values.into_values().next().unwrap_or_default();
            self.lows(index, low_mask, values, after);
            return;
        }
        let links = values.into_iter().map(|(value, mut values)| Link {
            compare: Compare::Equal,
            value,
            wanted: Wanted::Holds,
            then: match low_mask {
                // A value has no bits outside the mask.
                0 => Then::of(values.remove(&0).unwrap_or_default()),
                mask => Then::Lows {
                    index,
                    mask,
                    values,
                },
            },
        });
        self.load(high_offset(index), high_mask);
        self.chain(links.collect(), after);
    }

    fn lows(&mut self, index: u32, mask: u32, values: BTreeMap<u32, Vec<Rest<'_>>>, after: Label) {
        let links = values.into_iter().map(|(value, cases)| Link {
            compare: Compare::Equal,
            value,
            wanted: Wanted::Holds,
            then: Then::of(cases),
        });
        self.load(low_offset(index), mask);
        self.chain(links.collect(), after);
    }

    /// Cases with one test each, which differ in the low half of the value only.
    fn limits(
        &mut self,
        (index, op, mask, high): (u32, Operator, u64, u32),
        run: &[Case],
        after: Label,
    ) {
        let (compare, wanted) = comparison(op);
        let (high_mask, low_mask) = halves(mask);
        if high_mask != 0 {
            // Another high half decides all of them alike, and the first counts.
            let first = self.returning(run[0].ret);
            let (holds, fails) = wanted.sides(first, after);
            self.load(high_offset(index), high_mask);
            if compare != Compare::Equal {
                let not_greater = self.out.label();
                self.out.branch(Compare::Greater, high, holds, not_greater);
                self.out.here(not_greater);
            }
            let equal = self.out.label();
            self.out.branch(Compare::Equal, high, equal, fails);
            self.out.here(equal);
        }
        self.load(low_offset(index), low_mask);
        let chain = run
            .iter()
            .map(|case| Link {
                compare,
                value: halves(case.tests[0].value).1,
                wanted,
                then: Then::Return(case.ret),
            })
            .collect();
        self.chain(chain, after);
    }

    /// Compares what is loaded with one value after the other.
    fn chain(&mut self, links: Vec<Link<'_>>, after: Label) {
        let is_long = links.len() > CHAIN_REACH;
        let mut blocks: BTreeMap<Then<'_>, Label> = BTreeMap::new();
        let mut stones: BTreeMap<Stone, Label> = BTreeMap::new();
        let count = links.len();
        for (at, link) in links.into_iter().enumerate() {
            let is_last = at + 1 == count;
            let next = if is_last { after } else { self.out.label() };
            let stone = match link.then {
                Then::Return(value) => Stone::Return(value),
                then => Stone::Block(*blocks.entry(then).or_insert_with(|| self.out.label())),
            };
            let target = match stone {
                _ if is_long => *stones.entry(stone).or_insert_with(|| self.out.label()),
                Stone::Return(value) => self.returning(value),
                Stone::Block(label) => label,
            };
            let (holds, fails) = link.wanted.sides(target, next);
            self.out.branch(link.compare, link.value, holds, fails);
            if is_last || (at + 1) % CHAIN_REACH == 0 {
                self.lay(std::mem::take(&mut stones));
            }
            if !is_last {
                self.out.here(next);
            }
        }
        for (then, label) in blocks {
            self.out.here(label);
            self.block(then, after);
        }
    }

    /// Out of the way: no branch falls through to what is behind it.
    fn lay(&mut self, stones: BTreeMap<Stone, Label>) {
        for (stone, label) in stones {
            self.out.here(label);
            match stone {
                Stone::Return(value) => self.out.ret(value),
                Stone::Block(block) => self.out.goto(block),
            }
        }
    }

    fn block(&mut self, then: Then<'_>, otherwise: Label) {
        match then {
            Then::Return(value) => self.out.ret(value),
            Then::Lows {
                index,
                mask,
                values,
            } => self.lows(index, mask, values, otherwise),
            Then::Cases(rest) => {
                let cases: Vec<Case> = rest.iter().map(Rest::case).collect();
                self.cases(&cases, otherwise);
            }
        }
    }

    fn load(&mut self, offset: u32, mask: u32) {
        self.out.load(offset);
        if mask != u32::MAX {
            self.out.and(mask);
        }
    }
}

impl Wanted {
    /// Where a comparison goes when it holds and when it does not.
    fn sides(self, matched: Label, unmatched: Label) -> (Label, Label) {
        match self {
            Self::Holds => (matched, unmatched),
            Self::Fails => (unmatched, matched),
        }
    }
}

/// How BPF compares.
fn comparison(op: Operator) -> (Compare, Wanted) {
    match op {
        Operator::Equal | Operator::MaskedEqual => (Compare::Equal, Wanted::Holds),
        Operator::NotEqual => (Compare::Equal, Wanted::Fails),
        Operator::Greater => (Compare::Greater, Wanted::Holds),
        Operator::GreaterOrEqual => (Compare::GreaterOrEqual, Wanted::Holds),
        Operator::LessOrEqual => (Compare::Greater, Wanted::Fails),
        Operator::Less => (Compare::GreaterOrEqual, Wanted::Fails),
    }
}

fn halves(value: u64) -> (u32, u32) {
    let high = u32::try_from(value >> 32).expect("32 bits remain");
    let low = u32::try_from(value & u64::from(u32::MAX)).expect("masked to 32 bits");
    (high, low)
}

/// `args[index]` of struct seccomp_data; all architectures here are little-endian.
fn low_offset(index: u32) -> u32 {
    16 + 8 * index
}

fn high_offset(index: u32) -> u32 {
    low_offset(index) + 4
}
