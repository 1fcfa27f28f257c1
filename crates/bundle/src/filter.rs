//! `linux.seccomp` (config-linux.md, Seccomp) to a compiled filter.

use launch::plan::{SeccompFilter, Toggle};
use oci_spec::runtime::{
    Arch as SpecArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use seccomp::{Action, Arch, Arg, Flag, NEW_LISTENER, Operator, Profile, Rule};

use crate::plan::{HostFacts, Planned, SeccompListener};
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
    let listener = listener(spec)?;
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
        flags: match listener {
            Some(_) => program.flags | NEW_LISTENER,
            None => program.flags,
        },
    };
    Ok(Planned {
        value: Some(filter),
        warnings,
        notes,
    })
}

/// Who is asked about system calls with the action SCMP_ACT_NOTIFY; none without such.
///
/// # Errors
/// [`Error::Invalid`]: nobody is named, or a system call that is needed to tell of the listener.
pub(crate) fn listener(spec: &LinuxSeccomp) -> Result<Option<SeccompListener>> {
    const NOTIFY: LinuxSeccompAction = LinuxSeccompAction::ScmpActNotify;
    if spec.default_action() == NOTIFY {
        let why = "SCMP_ACT_NOTIFY cannot be used as default action";
        return Err(Error::invalid("linux.seccomp.defaultAction", why));
    }
    let syscalls = spec.syscalls().iter().flatten();
    let mut asked = syscalls.filter(|call| call.action() == NOTIFY).peekable();
    if asked.peek().is_none() {
        return Ok(None);
    }
    // The stub sends the listener with the second, and runc does with the first.
    let is_needed = |name: &&String| ["write", "sendmsg"].contains(&name.as_str());
    if let Some(name) = asked.flat_map(LinuxSyscall::names).find(is_needed) {
        let why = format!("SCMP_ACT_NOTIFY cannot be used for the {name} syscall");
        return Err(Error::invalid("linux.seccomp.syscalls", why));
    }
    let path = spec.listener_path().as_deref();
    match path.filter(|path| path.is_absolute()) {
        Some(path) => Ok(Some(SeccompListener {
            path: path.to_owned(),
            metadata: spec.listener_metadata().clone(),
        })),
        None => Err(Error::invalid(
            "linux.seccomp.listenerPath",
            "SCMP_ACT_NOTIFY needs the absolute path of a socket",
        )),
    }
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
    let notifies = syscalls
        .iter()
        .any(|call| call.action() == LinuxSeccompAction::ScmpActNotify);
    Ok(Profile {
        default_action: action("linux.seccomp.defaultAction", spec.default_action())?,
        default_errno: spec.default_errno_ret(),
        architectures: architectures.iter().filter_map(arch).collect(),
        rules: syscalls
            .iter()
            .enumerate()
            .map(rule)
            .collect::<Result<_>>()?,
        flags: flags(spec.flags().as_deref(), host, notifies)?,
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
        LinuxSeccompAction::ScmpActNotify if host.seccomp_flags & NEW_LISTENER == 0 => {
            let why = "this kernel has no SCMP_ACT_NOTIFY, which Linux has from 5.0";
            return Err(Error::unsupported(field, why));
        }
        LinuxSeccompAction::ScmpActNotify => Action::Notify,
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

fn flags(
    spec: Option<&[LinuxSeccompFilterFlag]>,
    host: &HostFacts,
    notifies: bool,
) -> Result<Vec<Flag>> {
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
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if !notifies => {
                return refuse("only of use with SCMP_ACT_NOTIFY");
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => Flag::WaitKillableRecv,
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
