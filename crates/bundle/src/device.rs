//! `linux.devices`: nodes to make beside the default ones (config-linux.md, Devices).

use std::collections::BTreeSet;

use launch::plan::{DeviceKind, DeviceNode};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use crate::{Error, Result};

/// Type bits of a mode, which containers' specifications carry along.
const MODE_PERMISSIONS: u32 = 0o7777;
const MODE_DEFAULT: u32 = 0o666;

/// Converts all nodes.
///
/// # Errors
/// [`Error::Invalid`] with the place in the list.
pub(crate) fn nodes(specs: &[LinuxDevice]) -> Result<Vec<DeviceNode>> {
    let mut paths = BTreeSet::new();
    let mut out = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let node = node(&format!("linux.devices[{i}]"), spec)?;
        // Callers merge lists of devices: of two with one path the last one stays.
        if !paths.insert(node.path.clone()) {
            out.retain(|other: &DeviceNode| other.path != node.path);
        }
        out.push(node);
    }
    Ok(out)
}

fn node(field: &str, spec: &LinuxDevice) -> Result<DeviceNode> {
    let path = spec.path().to_string_lossy().into_owned();
    if !spec.path().is_absolute() {
        let why = format!("{path:?} is not an absolute path");
        return Err(Error::invalid(format!("{field}.path"), why));
    }
    let kind = match spec.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => {
            let why = "\"a\" is no type of a device node";
            return Err(Error::invalid(format!("{field}.type"), why));
        }
    };
    let number = |name: &str, value: i64| match kind {
        DeviceKind::Fifo => Ok(0),
        _ => u32::try_from(value).map(u64::from).map_err(|_range| {
            let why = format!("{value} is no device number");
            Error::invalid(format!("{field}.{name}"), why)
        }),
    };
    Ok(DeviceNode {
        path,
        kind,
        major: number("major", spec.major())?,
        minor: number("minor", spec.minor())?,
        mode: spec.file_mode().unwrap_or(MODE_DEFAULT) & MODE_PERMISSIONS,
        uid: spec.uid().unwrap_or(0),
        gid: spec.gid().unwrap_or(0),
    })
}
