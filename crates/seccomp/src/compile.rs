//! From what a profile says about numbers to a program: a dispatch on the architecture, then a
//! binary search over ranges of numbers with the same verdict; `cases` compares arguments.

use std::collections::{BTreeMap, BTreeSet};

use crate::assemble::{Assembler, Compare, Label};
use crate::names::X32_BIT;
use crate::verdict::{Case, RETURN_ENOSYS, Verdict, Verdicts};
use crate::{Arch, Error, Instruction, Profile};

/// BPF_MAXINSNS.
const INSTRUCTIONS_MAX: usize = 4096;
const RETURN_KILL_THREAD: u32 = 0;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
/// The number a tracer leaves behind when it has skipped the call.
const NUMBER_SKIPPED: u32 = u32::MAX;

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// What to load.
    pub instructions: Vec<Instruction>,
    /// The flags of seccomp(2) that the profile asks for.
    pub flags: u32,
    /// System calls named by the profile that none of its architectures has: skipped.
    pub unknown: Vec<String>,
}

/// Compiles a profile for a machine.
///
/// `native` is always filtered, beside the architectures of the profile; a call of any other
/// kills the thread (libseccomp's SCMP_FLTATR_ACT_BADARCH).
///
/// # Errors
/// [`Error`] of the first rule that is malformed or contradicts another, or of a program beyond the
/// kernel's limit.
pub fn compile(profile: &Profile, native: Arch) -> Result<Program, Error> {
    let mut unknown = profile
        .rules
        .iter()
        .flat_map(|r| r.names.iter().cloned())
        .collect();
    let architectures: BTreeSet<Arch> = profile
        .architectures
        .iter()
        .copied()
        .chain([native])
        .collect();
    let mut verdicts = BTreeMap::new();
    for arch in architectures {
        verdicts.insert(arch, Verdicts::of(profile, arch, &mut unknown)?);
    }
    let default = profile.default_action.return_value(profile.default_errno)?;
    let instructions = program(native, default, &verdicts);
    if instructions.len() > INSTRUCTIONS_MAX {
        let instructions = instructions.len();
        return Err(Error::TooLarge {
            instructions,
            max: INSTRUCTIONS_MAX,
        });
    }
    let flags = profile.flags.iter().fold(0, |bits, flag| bits | flag.bit());
    Ok(Program {
        instructions,
        flags,
        unknown: unknown.into_iter().collect(),
    })
}

fn program(native: Arch, default: u32, verdicts: &BTreeMap<Arch, Verdicts>) -> Vec<Instruction> {
    let mut audits: Vec<u32> = verdicts.keys().map(|a| a.audit()).collect();
    audits.dedup();
    audits.sort_by_key(|a| *a != native.audit());
    let mut out = Assembler::default();
    let sections: Vec<(u32, Label)> = audits.iter().map(|a| (*a, out.label())).collect();
    out.load(OFFSET_ARCH);
    for (audit, section) in &sections {
        let next = out.label();
        out.branch(Compare::Equal, *audit, *section, next);
        out.here(next);
    }
    out.ret(RETURN_KILL_THREAD);
    for (audit, label) in sections {
        out.here(label);
        Section::new(&mut out, default).emit(&ranges(audit, default, verdicts));
    }
    out.finish()
}

/// Verdicts by the first number they hold for, up to the next; starts at 0.
type Ranges = BTreeMap<u32, Verdict>;

fn ranges(audit: u32, default: u32, verdicts: &BTreeMap<Arch, Verdicts>) -> Ranges {
    let mut ranges = Ranges::new();
    if audit == Arch::X86_64.audit() {
        fill(&mut ranges, 0, default, verdicts.get(&Arch::X86_64));
        fill(&mut ranges, X32_BIT, default, verdicts.get(&Arch::X32));
    } else {
        let arch = verdicts.iter().find(|(arch, _)| arch.audit() == audit);
        fill(&mut ranges, 0, default, arch.map(|(_, verdicts)| verdicts));
    }
    ranges.insert(NUMBER_SKIPPED, Verdict::Return(default));
    merge(ranges)
}

/// Lays the verdicts of one architecture over the numbers from `first` up.
fn fill(ranges: &mut Ranges, first: u32, default: u32, verdicts: Option<&Verdicts>) {
    let Some(verdicts) = verdicts else {
        ranges.insert(first, Verdict::Return(RETURN_KILL_THREAD));
        return;
    };
    ranges.insert(first, Verdict::Return(default));
    for (number, verdict) in &verdicts.numbers {
        ranges.insert(*number, verdict.clone());
        if !verdicts.numbers.contains_key(&(number + 1)) {
            ranges.insert(number + 1, Verdict::Return(default));
        }
    }
    if let Some(newest) = verdicts.newest {
        // The number after the newest starts a range of its own, for nothing is above it.
        ranges.insert(newest + 1, Verdict::Return(RETURN_ENOSYS));
    }
}

fn merge(ranges: Ranges) -> Ranges {
    let mut merged = Ranges::new();
    for (first, verdict) in ranges {
        if merged.values().next_back() != Some(&verdict) {
            merged.insert(first, verdict);
        }
    }
    merged
}

/// The part of a program for one architecture.
pub(crate) struct Section<'a> {
    pub(crate) out: &'a mut Assembler,
    default: u32,
    returns: BTreeMap<u32, Label>,
    blocks: BTreeMap<Vec<Case>, Label>,
}

impl<'a> Section<'a> {
    fn new(out: &'a mut Assembler, default: u32) -> Self {
        Self {
            out,
            default,
            returns: BTreeMap::new(),
            blocks: BTreeMap::new(),
        }
    }

    fn emit(mut self, ranges: &Ranges) {
        let leaves: Vec<(u32, Label)> = ranges
            .iter()
            .map(|(first, verdict)| (*first, self.leaf(verdict)))
            .collect();
        self.out.load(OFFSET_NUMBER);
        if let [(_, only)] = leaves[..] {
            self.out.goto(only);
        } else {
            let root = self.out.label();
            self.search(root, &leaves);
        }
        let default = self.returning(self.default);
        for (cases, label) in std::mem::take(&mut self.blocks) {
            self.out.here(label);
            self.cases(&cases, default);
        }
        for (value, label) in self.returns {
            self.out.here(label);
            self.out.ret(value);
        }
    }

    fn leaf(&mut self, verdict: &Verdict) -> Label {
        match verdict {
            Verdict::Return(value) => self.returning(*value),
            Verdict::Cases(cases) => {
                if let Some(label) = self.blocks.get(cases) {
                    return *label;
                }
                let label = self.out.label();
                self.blocks.insert(cases.clone(), label);
                label
            }
        }
    }

    /// Where the verdict is returned, at the end of this part.
    pub(crate) fn returning(&mut self, value: u32) -> Label {
        *self
            .returns
            .entry(value)
            .or_insert_with(|| self.out.label())
    }

    /// Halves the ranges until one is left; `here` is where the first comparison stands.
    fn search(&mut self, here: Label, leaves: &[(u32, Label)]) {
        let (lower, upper) = leaves.split_at(leaves.len() / 2);
        let lower_label = self.child(lower);
        let upper_label = self.child(upper);
        self.out.here(here);
        self.out.branch(
            Compare::GreaterOrEqual,
            upper[0].0,
            upper_label,
            lower_label,
        );
        if lower.len() > 1 {
            self.search(lower_label, lower);
        }
        if upper.len() > 1 {
            self.search(upper_label, upper);
        }
    }

    fn child(&mut self, leaves: &[(u32, Label)]) -> Label {
        match leaves {
            [(_, only)] => *only,
            _ => self.out.label(),
        }
    }
}
