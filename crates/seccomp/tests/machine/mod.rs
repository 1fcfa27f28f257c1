//! The kernel's side of a filter: runs a program over a system call; and the plain reading of a
//! profile that programs are compared with.

use seccomp::{Action, Arch, Arg, Instruction, Operator, Profile, Rule, number};

/// struct seccomp_data without the instruction pointer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) audit: u32,
    pub(crate) number: u32,
    pub(crate) args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let half = |v: u64, high: bool| (if high { v >> 32 } else { v & 0xffff_ffff }).try_into();
        match offset {
            0 => self.number,
            4 => self.audit,
            16..64 => {
                half(self.args[(offset as usize - 16) / 8], offset % 8 == 4).expect("32 bits")
            }
            other => unreachable!("load from {other}"),
        }
    }
}

/// Runs the filter; panics on anything the kernel's checker would refuse.
pub(crate) fn run(program: &[Instruction], call: &Call) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let i = program[at];
        at += 1;
        let skip = |holds: bool| usize::from(if holds { i.jt() } else { i.jf() });
        match i.code() {
            0x20 => accumulator = call.word(i.k()),
            0x54 => accumulator &= i.k(),
            0x05 => at += i.k() as usize,
            0x06 => return i.k(),
            0x15 => at += skip(accumulator == i.k()),
            0x25 => at += skip(accumulator > i.k()),
            0x35 => at += skip(accumulator >= i.k()),
            other => unreachable!("instruction {other:#x}"),
        }
    }
}

pub(crate) fn action_value(action: Action, errno: Option<u32>) -> u32 {
    match action {
        Action::KillThread => 0,
        Action::KillProcess => 0x8000_0000,
        Action::Trap => 0x0003_0000,
        Action::Errno => 0x0005_0000 + errno.unwrap_or(1),
        Action::Trace => 0x7ff0_0000 + errno.unwrap_or(1),
        Action::Log => 0x7ffc_0000,
        Action::Notify => 0x7fc0_0000,
        Action::Allow => 0x7fff_0000,
    }
}

fn holds(arch: Arch, arg: &Arg, args: &[u64; 6]) -> bool {
    let narrow = matches!(arch, Arch::X86 | Arch::X32 | Arch::Arm);
    let cut = |v: u64| if narrow { v & 0xffff_ffff } else { v };
    let (actual, value) = (cut(args[arg.index as usize]), cut(arg.value));
    match arg.op {
        Operator::NotEqual => actual != value,
        Operator::Less => actual < value,
        Operator::LessOrEqual => actual <= value,
        Operator::Equal => actual == value,
        Operator::GreaterOrEqual => actual >= value,
        Operator::Greater => actual > value,
        Operator::MaskedEqual => actual & value == cut(arg.value_two) & value,
    }
}

fn rule_holds(arch: Arch, rule: &Rule, args: &[u64; 6]) -> bool {
    let mut indices: Vec<u32> = rule.args.iter().map(|a| a.index).collect();
    indices.sort_unstable();
    indices.dedup();
    if indices.len() == rule.args.len() {
        rule.args.iter().all(|a| holds(arch, a, args))
    } else {
        rule.args.iter().any(|a| holds(arch, a, args))
    }
}

/// The values that are right for a call: one, or several where rules with different actions
/// overlap (their order is libseccomp's secret).
pub(crate) fn expected(profile: &Profile, native: Arch, call: &Call) -> Vec<u32> {
    let default = action_value(profile.default_action, profile.default_errno);
    if !Arch::ALL
        .iter()
        .any(|a| is_filtered(profile, native, *a) && a.audit() == call.audit)
    {
        return vec![0];
    }
    if call.number == u32::MAX {
        return vec![default];
    }
    let arch = match Arch::ALL.into_iter().find(|a| a.audit() == call.audit) {
        Some(Arch::X86_64) if call.number >= 0x4000_0000 => Arch::X32,
        Some(arch) => arch,
        None => return vec![0],
    };
    if !is_filtered(profile, native, arch) {
        return vec![0];
    }
    let newest = profile
        .rules
        .iter()
        .flat_map(|r| &r.names)
        .filter_map(|n| number(arch, n))
        .max();
    let permissive = matches!(
        profile.default_action,
        Action::Allow | Action::Log | Action::Trace
    );
    if !permissive && newest.is_some_and(|newest| call.number > newest) {
        return vec![0x0005_0000 + 38];
    }
    let rules: Vec<&Rule> = profile
        .rules
        .iter()
        .filter(|r| action_value(r.action, r.errno_ret) != default)
        .filter(|r| r.names.iter().any(|n| number(arch, n) == Some(call.number)))
        .collect();
    let mut values: Vec<u32> = rules
        .iter()
        .filter(|r| rule_holds(arch, r, &call.args))
        .map(|r| action_value(r.action, r.errno_ret))
        .collect();
    if values.is_empty() {
        values.push(default);
    }
    values
}

fn is_filtered(profile: &Profile, native: Arch, arch: Arch) -> bool {
    arch == native || profile.architectures.contains(&arch)
}
