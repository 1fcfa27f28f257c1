//! What is let pass before config.json meets the strict types of `oci-spec`, and what is not.
//!
//! The runtime specification and runc are more tolerant than those types: capabilities nobody
//! knows, zero values that Go leaves out, sections of other platforms. Strings with a NUL, on the
//! other hand, would be cut short by the first system call.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{Error, Result, capabilities};

/// Sections that are none of ours, and two names that `oci-spec` invented.
const FOREIGN: [&str; 7] = [
    "solaris",
    "windows",
    "vm",
    "zos",
    "freebsd",
    "uidMappings",
    "gidMappings",
];

/// Adapts a whole config.json; returns what was ignored, for the log.
pub(crate) fn config(config: &mut Value) -> Result<Vec<String>> {
    if let Some(object) = config.as_object_mut() {
        object.retain(|key, _| !FOREIGN.contains(&key.as_str()));
    }
    check_strings(config, String::new())?;
    let mut warnings = Vec::new();
    if let Some(object) = config.get_mut("process").and_then(Value::as_object_mut) {
        adapt_process(object, &mut warnings);
    }
    if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
        if linux.get("seccomp").is_some_and(is_no_profile) {
            linux.remove("seccomp");
        }
        if let Some(resources) = linux.get_mut("resources") {
            adapt_resources(resources);
        }
    }
    Ok(warnings)
}

/// Adapts a process on its own.
pub(crate) fn process(process: &mut Value) -> Result<Vec<String>> {
    check_strings(process, "process".to_owned())?;
    let mut warnings = Vec::new();
    if let Some(object) = process.as_object_mut() {
        adapt_process(object, &mut warnings);
    }
    Ok(warnings)
}

/// Adapts resources on their own.
pub(crate) fn resources(resources: &mut Value) -> Result<()> {
    check_strings(resources, "resources".to_owned())?;
    adapt_resources(resources);
    Ok(())
}

fn adapt_process(process: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    // Required by the specification, but zero where Go reads it; an empty cwd is refused later,
    // by name.
    process
        .entry("user")
        .or_insert_with(|| Value::Object(Map::new()));
    process
        .entry("cwd")
        .or_insert_with(|| Value::String(String::new()));
    if let Some(flags) = process
        .get_mut("scheduler")
        .and_then(|s| s.get_mut("flags"))
    {
        adapt_scheduler_flags(flags);
    }
    let Some(sets) = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let mut unknown = BTreeSet::new();
    for names in sets
        .iter_mut()
        .filter_map(|(_, names)| names.as_array_mut())
    {
        names.retain(|name| {
            let known = name
                .as_str()
                .is_none_or(|name| capabilities::number(name).is_some());
            if !known {
                unknown.extend(name.as_str().map(str::to_owned));
            }
            known
        });
    }
    if !unknown.is_empty() {
        let names: Vec<_> = unknown.iter().map(String::as_str).collect();
        warnings.push(capabilities::ignored(&names));
    }
}

/// Two words of the specification that `oci-spec` writes in its own way.
fn adapt_scheduler_flags(flags: &mut Value) {
    for flag in flags.as_array_mut().into_iter().flatten() {
        let own = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
            _ => continue,
        };
        *flag = Value::String(own.to_owned());
    }
}

/// runc: "No default action specified, no syscalls listed, assume seccomp disabled".
fn is_no_profile(seccomp: &Value) -> bool {
    let is_empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    seccomp.is_object()
        && is_empty(seccomp.get("defaultAction"))
        && is_empty(seccomp.get("syscalls"))
}

/// An empty type of a device rule is an absent one.
fn adapt_resources(resources: &mut Value) {
    let rules = resources.get_mut("devices").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten().filter_map(Value::as_object_mut) {
        if rule.get("type").is_some_and(|kind| kind == "") {
            rule.remove("type");
        }
    }
}

fn check_strings(value: &Value, at: String) -> Result<()> {
    match value {
        Value::String(text) if text.contains('\0') => {
            Err(Error::invalid(at, format!("{text:?} contains a NUL")))
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .try_for_each(|(i, value)| check_strings(value, format!("{at}[{i}]"))),
        Value::Object(object) => object.iter().try_for_each(|(key, value)| {
            let dot = if at.is_empty() { "" } else { "." };
            check_strings(value, format!("{at}{dot}{key}"))
        }),
        _ => Ok(()),
    }
}
