//! `process` of config.json, a process.json, or the spec of an Exec (config.md, Process).

use std::collections::BTreeSet;

use launch::plan::{
    CapabilitySets, Labels, Process, Scheduling, SeccompFilter, TerminalSize, Toggle,
};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process as Spec, User};

use crate::plan::{HostFacts, Planned};
use crate::{Error, Result, capabilities, scheduling};

/// What the caller knows and a process specification does not say.
#[derive(Debug, Clone)]
pub struct ProcessContext {
    /// What the host can do.
    pub host: HostFacts,
    /// How many numbers from 3 up it keeps of the caller's descriptors, to the highest that is open.
    pub preserve_fds: u32,
    /// Whether it gets a session keyring of its own.
    pub new_keyring: Toggle,
    /// The filter of its container.
    pub seccomp: Option<SeccompFilter>,
    /// What it has when it names no capabilities: those of the container for an exec, none for
    /// init (as runc).
    pub capabilities: CapabilitySets,
    /// What it has when it names none: those of the container for an exec (as runc).
    pub labels: Labels,
    /// What its container gives to each of its processes.
    pub scheduling: Scheduling,
}

/// The field's name.
pub(crate) const NO_NEW_PRIVS: &str = "process.noNewPrivileges";

/// `(uid_t) -1`, chown(2).
const ID_OF_NOBODY: u32 = u32::MAX;

/// NGROUPS_MAX of Linux, setgroups(2).
const GROUPS_MAX: usize = 65536;

/// A write to `/proc/PID/attr` is at most a page, with the word `exec ` before an AppArmor profile.
const LABEL_BYTES_MAX: usize = 4000;

/// Checks and converts a process.
///
/// # Errors
/// [`Error::Invalid`] by the field, [`Error::Unsupported`] for what is not done here.
pub fn process_plan(spec: &Spec, context: &ProcessContext) -> Result<Planned<Process>> {
    let capabilities = match spec.capabilities() {
        Some(sets) => capabilities::sets(sets, context.host.last_cap),
        None => Planned {
            value: context.capabilities,
            warnings: Vec::new(),
            notes: Vec::new(),
        },
    };
    let user = user(spec)?;
    let mut warnings = capabilities.warnings;
    let value = Process {
        args: args(spec)?,
        env: env(spec)?,
        cwd: cwd(spec)?,
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: umask(user.umask())?,
        capabilities: Some(capabilities.value),
        no_new_privs: no_new_privs(spec, &context.host, &mut warnings)?,
        rlimits: rlimits(spec.rlimits().as_deref().unwrap_or_default())?,
        oom_score_adj: oom_score_adj(spec.oom_score_adj())?,
        seccomp: context.seccomp.clone(),
        terminal: terminal(spec)?,
        preserve_fds: context.preserve_fds,
        new_keyring: context.new_keyring,
        labels: Labels {
            apparmor: apparmor(spec, &context.host)?.or_else(|| context.labels.apparmor.clone()),
            selinux: selinux(spec, &context.host)?.or_else(|| context.labels.selinux.clone()),
        },
        scheduling: scheduling::of_process(spec, &context.scheduling)?,
    };
    Ok(Planned {
        value,
        warnings,
        notes: capabilities.notes,
    })
}

/// Ids that setuid(2), setgid(2) and setgroups(2) refuse whatever the user namespace.
fn user(spec: &Spec) -> Result<&User> {
    let user = spec.user();
    let gids = user.additional_gids().as_deref().unwrap_or_default();
    let check = |field: &str, id: u32| match id {
        ID_OF_NOBODY => Err(Error::invalid(
            format!("process.user.{field}"),
            format!("{id} is the id that stands for none"),
        )),
        _ => Ok(()),
    };
    check("uid", user.uid())?;
    check("gid", user.gid())?;
    gids.iter()
        .try_for_each(|gid| check("additionalGids", *gid))?;
    if gids.len() > GROUPS_MAX {
        let why = format!("{} groups, the kernel takes {GROUPS_MAX}", gids.len());
        return Err(Error::invalid("process.user.additionalGids", why));
    }
    Ok(user)
}

fn no_new_privs(spec: &Spec, host: &HostFacts, warnings: &mut Vec<String>) -> Result<Toggle> {
    let asked = toggle(spec.no_new_privileges());
    if asked == Toggle::On && host.no_new_privs == Toggle::Off {
        lack(NO_NEW_PRIVS, "no_new_privs", host, warnings)?;
        return Ok(Toggle::Off);
    }
    Ok(asked)
}

/// What becomes of a field that the kernel cannot honour.
///
/// # Errors
/// [`Error::Unsupported`] unless the operator lets it be left out.
pub(crate) fn lack(
    field: &str,
    what: &str,
    host: &HostFacts,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if host.hardening_optional == Toggle::On {
        warnings.push(format!("{field} is left out: this kernel has no {what}"));
        return Ok(());
    }
    let why = format!(
        "this kernel has no {what}, which Linux has from 3.5; HardeningOptional (see docs/runlxc.md) \
         leaves it out"
    );
    Err(Error::unsupported(field, why))
}

/// On only for `true`.
pub(crate) fn toggle(value: Option<bool>) -> Toggle {
    if value == Some(true) {
        Toggle::On
    } else {
        Toggle::Off
    }
}

fn apparmor(spec: &Spec, host: &HostFacts) -> Result<Option<String>> {
    const FIELD: &str = "process.apparmorProfile";
    let profile = label(FIELD, spec.apparmor_profile().as_deref())?;
    match (host.apparmor, profile) {
        (Toggle::On, profile) => Ok(profile),
        // What a process has on a host without AppArmor.
        (Toggle::Off, None) => Ok(None),
        (Toggle::Off, Some(profile)) if profile == "unconfined" => Ok(None),
        (Toggle::Off, Some(profile)) => {
            let why = format!("profile {profile:?}: AppArmor is not enabled on this host");
            Err(Error::unsupported(FIELD, why))
        }
    }
}

fn selinux(spec: &Spec, host: &HostFacts) -> Result<Option<String>> {
    const FIELD: &str = "process.selinuxLabel";
    match (host.selinux, label(FIELD, spec.selinux_label().as_deref())?) {
        (Toggle::Off, Some(label)) => {
            let why = format!("label {label:?}: SELinux is not enabled on this host");
            Err(Error::unsupported(FIELD, why))
        }
        (_, label) => Ok(label),
    }
}

/// A name that a security module can know; none when it is absent or empty.
pub(crate) fn label(field: &str, name: Option<&str>) -> Result<Option<String>> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    if name.len() > LABEL_BYTES_MAX {
        let why = format!("{} bytes, above {LABEL_BYTES_MAX}", name.len());
        return Err(Error::invalid(field, why));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::invalid(
            field,
            format!("{name:?} has a control character"),
        ));
    }
    Ok(Some(name.to_owned()))
}

fn args(spec: &Spec) -> Result<Vec<String>> {
    match spec.args() {
        Some(args) if !args.is_empty() => Ok(args.clone()),
        _ => Err(Error::invalid("process.args", "must not be empty")),
    }
}

fn env(spec: &Spec) -> Result<Vec<String>> {
    let env = spec.env().clone().unwrap_or_default();
    for (i, variable) in env.iter().enumerate() {
        let why = match variable.find('=') {
            None => "has no '='",
            Some(0) => "has no name",
            Some(_) => continue,
        };
        return Err(Error::invalid(
            format!("process.env[{i}]"),
            format!("{variable:?} {why}"),
        ));
    }
    Ok(env)
}

fn cwd(spec: &Spec) -> Result<String> {
    let cwd = spec.cwd().to_string_lossy().into_owned();
    if cwd.is_empty() {
        return Err(Error::invalid("process.cwd", "must not be empty"));
    }
    if !spec.cwd().is_absolute() {
        return Err(Error::invalid(
            "process.cwd",
            format!("{cwd:?} is not an absolute path"),
        ));
    }
    Ok(cwd)
}

fn umask(umask: Option<u32>) -> Result<Option<u32>> {
    match umask {
        Some(mask) if mask > 0o777 => Err(Error::invalid(
            "process.user.umask",
            format!("{mask:#o} is above 0o777"),
        )),
        mask => Ok(mask),
    }
}

fn oom_score_adj(score: Option<i32>) -> Result<Option<i32>> {
    match score {
        Some(score) if !(-1000..=1000).contains(&score) => {
            let why = format!("{score} is not in -1000..=1000");
            Err(Error::invalid("process.oomScoreAdj", why))
        }
        score => Ok(score),
    }
}

fn terminal(spec: &Spec) -> Result<Option<TerminalSize>> {
    if spec.terminal() != Some(true) {
        return Ok(None);
    }
    let size = spec.console_size().unwrap_or_default();
    let narrow = |name: &str, characters: u64| {
        u16::try_from(characters).map_err(|_range| {
            let why = format!("{characters} is above 65535");
            Error::invalid(format!("process.consoleSize.{name}"), why)
        })
    };
    Ok(Some(TerminalSize {
        rows: narrow("height", size.height())?,
        columns: narrow("width", size.width())?,
    }))
}

fn rlimits(limits: &[PosixRlimit]) -> Result<Vec<(u32, u64, u64)>> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (i, limit) in limits.iter().enumerate() {
        let refuse = |why: String| Err(Error::invalid(format!("process.rlimits[{i}]"), why));
        let (number, name) = (resource(limit.typ()), limit.typ());
        if !seen.insert(number) {
            return refuse(format!("a second {name}"));
        }
        let (soft, hard) = (limit.soft(), limit.hard());
        if soft > hard {
            return refuse(format!(
                "{name}: the soft limit {soft} is above the hard limit {hard}"
            ));
        }
        out.push((number, soft, hard));
    }
    Ok(out)
}

/// asm-generic/resource.h: the numbers of every architecture we have tables for.
fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}
