//! Devices in version 2: a program at the cgroup in place of a list.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use crate::devices::DeviceList;
use crate::devices_bpf::program;
use crate::resources::{Access, DeviceRule, Verdict};
use crate::{Error, Result};

/// Makes the cgroup's program that of the rules; at no moment is there none.
///
/// Where bpf(2) cannot be used, rules that forbid nothing are as good as applied (runc, crun).
pub(crate) fn apply(dir: &Path, rules: &[DeviceRule]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let instructions = program(&DeviceList::from_rules(rules)?);
    match replace(dir, &instructions) {
        Err(_) if forbid_nothing(rules) => Ok(()),
        replaced => replaced,
    }
}

fn forbid_nothing(rules: &[DeviceRule]) -> bool {
    rules
        .iter()
        .all(|rule| rule.verdict == Verdict::Allow && rule.access == Access::ALL)
}

fn replace(dir: &Path, instructions: &[u64]) -> Result<()> {
    let failed = |call| move |source: io::Error| Error::Kernel { call, source };
    let cgroup = File::open(dir).map_err(|source| Error::Read {
        path: dir.to_owned(),
        source,
    })?;
    let cgroup = cgroup.as_fd();
    let old = sys::bpf::attached_cgroup_device(cgroup).map_err(failed("query device programs"))?;
    let new =
        sys::bpf::load_cgroup_device(instructions).map_err(failed("load a device program"))?;
    if let [only] = old.as_slice() {
        match sys::bpf::replace_cgroup_device(cgroup, new.as_fd(), only.as_fd()) {
            // Before Linux 5.6 there is no replacing.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {}
            replaced => return replaced.map_err(failed("replace a device program")),
        }
    }
    sys::bpf::attach_cgroup_device(cgroup, new.as_fd())
        .map_err(failed("attach a device program"))?;
    // All programs must allow: until the old ones are gone the cgroup may do less, never more.
    old.iter().try_for_each(|program| {
        sys::bpf::detach_cgroup_device(cgroup, program.as_fd())
            .map_err(failed("detach a device program"))
    })
}
