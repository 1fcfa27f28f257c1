//! All limits of version 2, in runc's order, files named by the caller last.

use std::collections::BTreeMap;
use std::path::Path;

use nix::errno::Errno;

use super::{cpu, cpuset, devices, io, memory};
use crate::resources::Resources;
use crate::v1::{hugetlb, net, pids};
use crate::{Error, Result, file, rdma};

const UNIFIED: &str = "linux.resources.unified";

/// Writes what is set.
pub(crate) fn apply(dir: &Path, resources: &Resources) -> Result<()> {
    let network = &resources.network;
    for (asked, controller) in [
        (net::asked_class(network), "net_cls"),
        (net::asked_priorities(network), "net_prio"),
    ] {
        if let Some(field) = asked {
            return Err(Error::NoController {
                field,
                controller: controller.to_owned(),
            });
        }
    }
    if pids::asked(&resources.pids).is_some() || file::exists(dir, "pids.max") {
        pids::apply(dir, &resources.pids)?;
    }
    memory::apply(dir, &resources.memory)?;
    io::apply(dir, &resources.block_io)?;
    cpu::apply(dir, &resources.cpu)?;
    devices::apply(dir, &resources.devices)?;
    cpuset::apply(dir, &resources.cpu)?;
    hugetlb::apply(dir, &resources.hugetlb, "max")?;
    rdma::apply(dir, &resources.rdma)?;
    apply_unified(dir, &resources.unified)
}

/// Files by name, a write(2) for each line of the value.
fn apply_unified(dir: &Path, files: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in files {
        let invalid = |why: String| Error::Invalid {
            field: UNIFIED,
            why,
        };
        if name.contains('/') {
            return Err(invalid(format!(
                "{name:?} must be a file name (no slashes)"
            )));
        }
        let Some((controller, _)) = name.split_once('.') else {
            return Err(invalid(format!(
                "{name:?} must be in the form CONTROLLER.PARAMETER"
            )));
        };
        let mut lines = value.trim_end_matches('\n').split('\n');
        let written = lines.try_for_each(|line| file::write(dir, name, line));
        match written {
            Err(error) if missing(&error) && lacks(dir, controller)? => {
                return Err(Error::NoController {
                    field: UNIFIED,
                    controller: controller.to_owned(),
                });
            }
            other => other?,
        }
    }
    Ok(())
}

fn missing(error: &Error) -> bool {
    error.is_not_found() || file::is(error, Errno::EPERM) || file::is(error, Errno::EACCES)
}

fn lacks(dir: &Path, controller: &str) -> Result<bool> {
    let available = file::read(dir, "cgroup.controllers")?;
    Ok(controller != "cgroup" && !available.split_whitespace().any(|name| name == controller))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    fn unified(name: &str, value: &str) -> Resources {
        let unified = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        Resources {
            unified,
            ..Resources::default()
        }
    }

    #[test]
    fn files_by_name_are_written_line_by_line_and_last() {
        let dir = directory(&[("io.max", ""), ("memory.max", "")]);
        apply(dir.path(), &unified("io.max", "8:0 rbps=1\n8:16 rbps=2\n")).unwrap();
        assert_eq!(written(dir.path(), "io.max"), ["8:0 rbps=1", "8:16 rbps=2"]);
        let mut both = unified("memory.max", "77");
        both.memory.limit = Some(4096);
        apply(dir.path(), &both).unwrap();
        assert_eq!(written(dir.path(), "memory.max"), ["4096", "77"]);
    }

    #[test]
    fn files_that_are_none_are_refused_with_the_reason() {
        let dir = directory(&[("cgroup.controllers", "memory\n")]);
        for (name, expected) in [
            ("../x/memory.max", "no slashes"),
            ("memory", "CONTROLLER.PARAMETER"),
            ("cpu.weight", "needs the cgroup controller cpu"),
            ("memory.nonsense", "memory.nonsense"),
        ] {
            let error = apply(dir.path(), &unified(name, "1"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn marks_on_packets_do_not_exist() {
        let mut resources = Resources::default();
        resources.network.class_id = Some(1);
        let error = apply(directory(&[]).path(), &resources).unwrap_err();
        assert!(matches!(error, Error::NoController { .. }), "{error}");
        resources.network.class_id = Some(0);
        apply(directory(&[]).path(), &resources).unwrap();
    }
}
