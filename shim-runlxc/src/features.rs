//! What this runtime can do, as runtime-spec's features document (features.md).

use std::time::Duration;

use bundle::{NamespaceKind, capabilities, state};
use launch::plan::Toggle;
use seccomp::{Action, Arch, Flag, Operator};
use serde_json::{Value, json};

use crate::checkpoint::CONFIG_ANNOTATION;
use crate::criu::Criu;
use crate::host::Host;
use crate::systemd;
use crate::{Error, Result};

/// Oldest `ociVersion` of a config.json that is taken.
const OCI_VERSION_MIN: &str = "1.0.0";

/// Bind mounts can be id-mapped. But containerd takes this for a yes to pods with user namespaces
/// (`supportsCRIUserns`), whose containers join one by path: the answer is no until such pods have
/// been run.
const ID_MAPPED_MOUNTS: bool = false;

/// How further processes come into a container: by setns(2), or started by its pid 1.
const EXEC: &str = "org.pouch.exec";

/// How long CRIU may take to say whether it works: callers ask for features while they start.
const CRIU_LIMIT: Duration = Duration::from_secs(5);

/// The document.
#[must_use]
pub fn document(host: &Host) -> Value {
    let namespaces: Vec<_> = NamespaceKind::ALL.map(NamespaceKind::as_str).into();
    let known_flags: Vec<_> = Flag::ALL.map(Flag::as_str).into();
    let supported = |flag: &Flag| flag.bit() & host.facts.seccomp_flags == flag.bit();
    let supported_flags: Vec<_> = Flag::ALL
        .iter()
        .filter(|flag| supported(flag))
        .map(|flag| flag.as_str())
        .collect();
    let capabilities = &capabilities::NAMES[..usize::from(host.facts.last_cap)
        .saturating_add(1)
        .min(capabilities::NAMES.len())];
    json!({
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": state::OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mounts::known_options(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": host.facts.seccomp_filter == Toggle::On,
                "actions": Action::ALL.map(Action::as_str).as_slice(),
                "operators": Operator::ALL.map(Operator::as_str).as_slice(),
                "archs": Arch::ALL.map(Arch::as_str).as_slice(),
                "knownFlags": known_flags,
                "supportedFlags": supported_flags,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "mountExtensions": { "idmap": { "enabled": ID_MAPPED_MOUNTS } },
            "netDevices": { "enabled": true },
            "memoryPolicy": {
                "modes": bundle::MEMORY_MODES.map(|mode| mode.to_string()),
                "flags": bundle::MEMORY_FLAGS.map(|flag| flag.to_string()),
            },
        },
        "annotations": {
            "org.opencontainers.runc.checkpoint.enabled": checkpoint(&Criu::find_within(CRIU_LIMIT)),
            EXEC: if sys::process::has_setns() { "setns" } else { "agent" },
        },
        "potentiallyUnsafeConfigAnnotations": [bundle::annotations::PREFIX, CONFIG_ANNOTATION, systemd::PREFIX],
    })
}

/// Whether there is a CRIU that works on this kernel.
fn checkpoint(found: &Result<Criu>) -> &'static str {
    match found {
        Ok(_works) => "true",
        Err(Error::Timeout { .. }) => "unknown",
        Err(_why) => "false",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criu_does_not_say_in_time_is_unknown() {
        let limit = CRIU_LIMIT;
        let what = "criu";
        assert_eq!(checkpoint(&Err(Error::Timeout { what, limit })), "unknown");
        assert_eq!(checkpoint(&Err(Error::unsupported("x", "y"))), "false");
    }
}
