//! `linux.seccomp` (config-linux.md, Seccomp) to a compiled filter.

use launch::plan::{SeccompFilter, Toggle};
use oci_spec::runtime::{
    Arch as SpecArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use seccomp::{Action, Arch, Arg, Flag, Operator, Profile, Rule};

use crate::plan::{HostFacts, Planned};
use crate::process::lack;
use crate::{Error, Result};

/// The field's name.
pub(crate) const SECCOMP: &str = "linux.seccomp";

/// Compiles the profile for the machine this runs on.
///
/// # Errors
/// [`Error::Unsupported`] for what the host or this runtime lacks, [`Error::Seccomp`] for a
/// profile that contradicts itself.
pub(crate) fn filter(
    spec: &LinuxSeccomp,
    host: &HostFacts,
) -> Result<Planned<Option<SeccompFilter>>> {
    let mut warnings = Vec::new();
    if host.seccomp_filter == Toggle::Off {
        lack(SECCOMP, "system call filters", host, &mut warnings)?;
        return Ok(Planned {
            value: None,
            warnings,
            notes: Vec::new(),
        });
    }
    let Some(native) = Arch::native() else {
        let why = "no table of system calls for this architecture";
        return Err(Error::unsupported(SECCOMP, why));
    };
    let profile = profile(spec, host)?;
    let program = seccomp::compile(&profile, native).map_err(Error::Seccomp)?;
    // Every profile names calls of other machines: nothing for an operator, as with runc.
    let mut notes = Vec::new();
    if !program.unknown.is_empty() {
        let names = program.unknown.join(", ");
        notes.push(format!(
            "linux.seccomp.syscalls: unknown here and skipped: {names}"
        ));
    }
    let filter = SeccompFilter {
        program: program
            .instructions
            .iter()
            .map(|instruction| instruction.0)
            .collect(),
        flags: program.flags,
    };
    Ok(Planned {
        value: Some(filter),
        warnings,
        notes,
    })
}

fn profile(spec: &LinuxSeccomp, host: &HostFacts) -> Result<Profile> {
    let architectures = spec.architectures().as_deref().unwrap_or_default();
    let syscalls = spec.syscalls().as_deref().unwrap_or_default();
    let action = |field: &str, action| action_of(field, action, host);
    let rule = |(i, spec): (usize, &LinuxSyscall)| {
        Ok(Rule {
            names: spec.names().clone(),
            action: action(
                &format!("linux.seccomp.syscalls[{i}].action"),
                spec.action(),
            )?,
            errno_ret: spec.errno_ret(),
            args: spec.args().iter().flatten().map(arg).collect(),
        })
    };
    Ok(Profile {
        default_action: action("linux.seccomp.defaultAction", spec.default_action())?,
        default_errno: spec.default_errno_ret(),
        architectures: architectures.iter().filter_map(arch).collect(),
        rules: syscalls
            .iter()
            .enumerate()
            .map(rule)
            .collect::<Result<_>>()?,
        flags: flags(spec.flags().as_deref(), host)?,
    })
}

fn action_of(field: &str, action: LinuxSeccompAction, host: &HostFacts) -> Result<Action> {
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Action::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => Action::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Action::Trap,
        LinuxSeccompAction::ScmpActErrno => Action::Errno,
        LinuxSeccompAction::ScmpActTrace => Action::Trace,
        LinuxSeccompAction::ScmpActAllow => Action::Allow,
        // The action and the flag came together, in kernel 4.14. An older one kills instead.
        LinuxSeccompAction::ScmpActLog if host.seccomp_flags & Flag::Log.bit() == 0 => {
            return Err(Error::unsupported(field, "this kernel has no SCMP_ACT_LOG"));
        }
        LinuxSeccompAction::ScmpActLog => Action::Log,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::unsupported(
                field,
                "SCMP_ACT_NOTIFY is not implemented",
            ));
        }
    })
}

/// An architecture that this kind of machine cannot run has no system calls to filter.
fn arch(spec: &SpecArch) -> Option<Arch> {
    match spec {
        SpecArch::ScmpArchX86_64 => Some(Arch::X86_64),
        SpecArch::ScmpArchX86 => Some(Arch::X86),
        SpecArch::ScmpArchX32 => Some(Arch::X32),
        SpecArch::ScmpArchAarch64 => Some(Arch::Aarch64),
        SpecArch::ScmpArchArm => Some(Arch::Arm),
        _ => None,
    }
}

fn flags(spec: Option<&[LinuxSeccompFilterFlag]>, host: &HostFacts) -> Result<Vec<Flag>> {
    let has = |flag: &Flag| flag.bit() & !host.seccomp_flags == 0;
    let Some(spec) = spec else {
        // runc's default: speculation is slow to prevent, and a filter is no reason for it.
        return Ok([Flag::SpecAllow].into_iter().filter(has).collect());
    };
    let flag = |spec: &LinuxSeccompFilterFlag| {
        let refuse = |why| {
            Err(Error::unsupported(
                "linux.seccomp.flags",
                format!("{spec}: {why}"),
            ))
        };
        let flag = match spec {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => Flag::Log,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Flag::Tsync,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Flag::SpecAllow,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return refuse("only of use with SCMP_ACT_NOTIFY");
            }
        };
        if has(&flag) {
            Ok(flag)
        } else {
            refuse("this kernel has no such flag")
        }
    };
    spec.iter().map(flag).collect()
}

fn arg(spec: &LinuxSeccompArg) -> Arg {
    Arg {
        // What does not fit is above 5 all the more, and refused there by name.
        index: u32::try_from(spec.index()).unwrap_or(u32::MAX),
        value: spec.value(),
        value_two: spec.value_two().unwrap_or(0),
        op: match spec.op() {
            LinuxSeccompOperator::ScmpCmpNe => Operator::NotEqual,
            LinuxSeccompOperator::ScmpCmpLt => Operator::Less,
            LinuxSeccompOperator::ScmpCmpLe => Operator::LessOrEqual,
            LinuxSeccompOperator::ScmpCmpEq => Operator::Equal,
            LinuxSeccompOperator::ScmpCmpGe => Operator::GreaterOrEqual,
            LinuxSeccompOperator::ScmpCmpGt => Operator::Greater,
            LinuxSeccompOperator::ScmpCmpMaskedEq => Operator::MaskedEqual,
        },
    }
}
