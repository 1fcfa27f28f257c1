//! Names of capabilities, their numbers (capabilities(7)), and the five sets of a process.

use std::collections::BTreeSet;

use launch::plan::{CapabilitySets, Process};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

use crate::plan::Planned;
use crate::{Error, Result};

/// In the order of their numbers.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A process without any right.
pub const NONE: CapabilitySets = CapabilitySets {
    bounding: 0,
    effective: 0,
    inheritable: 0,
    permitted: 0,
    ambient: 0,
};

/// The number of a capability, e.g. 0 for `CAP_CHOWN`; none when the name is unknown.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    let index = NAMES.iter().position(|n| *n == name)?;
    u8::try_from(index).ok()
}

/// The sets of a process. What the kernel does not know (`last_cap` is its highest number) is left
/// out with a warning, and so are ambient ones that it would refuse, as runc does, and in its words.
#[must_use]
pub fn sets(capabilities: &LinuxCapabilities, last_cap: u8) -> Planned<CapabilitySets> {
    let mut unknown = BTreeSet::new();
    let mut set = |names: &Option<Capabilities>| {
        names
            .as_ref()
            .map_or(0, |names| mask(names, last_cap, &mut unknown))
    };
    let mut sets = CapabilitySets {
        bounding: set(capabilities.bounding()),
        effective: set(capabilities.effective()),
        inheritable: set(capabilities.inheritable()),
        permitted: set(capabilities.permitted()),
        ambient: set(capabilities.ambient()),
    };
    // PR_CAP_AMBIENT_RAISE takes what is both permitted and inheritable (prctl(2)).
    let possible = sets.permitted & sets.inheritable;
    let refused = names_in(sets.ambient & !possible).map(|name| {
        format!("can't raise ambient capability {name}: it is not both permitted and inheritable")
    });
    let unknown = Vec::from_iter(unknown);
    let mut warnings = match unknown.as_slice() {
        [] => Vec::new(),
        names => vec![ignored(names)],
    };
    warnings.extend(refused);
    sets.ambient &= possible;
    Planned {
        value: sets,
        warnings,
        notes: Vec::new(),
    }
}

/// What may be inherited must be in the bounding set: capset(2) refuses all else, and so does runc.
/// To be asked when the warnings of a plan were told: names that were ignored may be the reason.
///
/// # Errors
/// [`Error::Invalid`] with the names that are not.
pub fn check_inheritable(process: &Process) -> Result<()> {
    let sets = process.capabilities.unwrap_or(NONE);
    let outside: Vec<_> = names_in(sets.inheritable & !sets.bounding).collect();
    if outside.is_empty() {
        return Ok(());
    }
    let names = outside.join(", ");
    Err(Error::invalid(
        "process.capabilities.inheritable",
        format!("{names} not in the bounding set: Operation not permitted"),
    ))
}

/// The warning of names that mean nothing here, in runc's words, for which callers look.
#[must_use]
pub(crate) fn ignored(names: &[&str]) -> String {
    let names = names.join(" ");
    format!("ignoring unknown or unavailable capabilities: [{names}]")
}

fn mask(names: &Capabilities, last_cap: u8, unknown: &mut BTreeSet<&'static str>) -> u64 {
    let mut mask = 0;
    for capability in names {
        // Display of oci-spec has no prefix; what is not in our table was dropped when it was read.
        let Some(number) = number(&format!("CAP_{capability}")) else {
            continue;
        };
        if number <= last_cap {
            mask |= 1 << number;
        } else {
            unknown.insert(NAMES[usize::from(number)]);
        }
    }
    mask
}

fn names_in(mask: u64) -> impl Iterator<Item = &'static str> {
    NAMES
        .into_iter()
        .enumerate()
        .filter(move |(i, _)| mask >> i & 1 == 1)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambient_ones_that_cannot_be_are_told_one_by_one() {
        let spec = serde_json::json!({
            "permitted": ["CAP_KILL", "CAP_CHOWN"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL", "CAP_CHOWN", "CAP_FOWNER"],
        });
        let planned = sets(&serde_json::from_value(spec).unwrap(), 40);
        assert_eq!(planned.value.ambient, 1 << 5);
        let why = "it is not both permitted and inheritable";
        let told = ["CAP_CHOWN", "CAP_FOWNER"]
            .map(|name| format!("can't raise ambient capability {name}: {why}"));
        assert_eq!(planned.warnings, told);
    }
}
