//! `hooks` (config.md, POSIX-platform Hooks).

use launch::plan::Hook;
use oci_spec::runtime::Hook as Spec;

use crate::{Error, Result};

/// Converts the hooks of one kind.
///
/// # Errors
/// [`Error::Invalid`]: a relative path, a time limit that is not positive.
pub(crate) fn hooks(kind: &str, specs: &Option<Vec<Spec>>) -> Result<Vec<Hook>> {
    let specs = specs.as_deref().unwrap_or_default();
    specs
        .iter()
        .enumerate()
        .map(|(i, spec)| hook(&format!("hooks.{kind}[{i}]"), spec))
        .collect()
}

fn hook(field: &str, spec: &Spec) -> Result<Hook> {
    let path = spec.path().to_string_lossy().into_owned();
    if !spec.path().is_absolute() {
        let why = format!("{path:?} is not an absolute path");
        return Err(Error::invalid(format!("{field}.path"), why));
    }
    let timeout_s = match spec.timeout() {
        None => None,
        Some(seconds) => match u32::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Some(seconds),
            _ => {
                let why = format!("{seconds} is not a positive number of seconds");
                return Err(Error::invalid(format!("{field}.timeout"), why));
            }
        },
    };
    Ok(Hook {
        path,
        args: spec.args().clone().unwrap_or_default(),
        env: spec.env().clone().unwrap_or_default(),
        timeout_s,
    })
}
