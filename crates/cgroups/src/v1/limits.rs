//! All limits of version 1, each to its controller's hierarchy.

use std::path::Path;

use super::{blkio, cpu, cpuset, devices, hugetlb, memory, net, pids};
use crate::hierarchies::Controller;
use crate::paths::CgroupPaths;
use crate::resources::Resources;
use crate::{Error, Result, rdma};

/// Writes what is set. A controller that the host lacks is an error only if it is needed.
pub(crate) fn apply(paths: &CgroupPaths, resources: &Resources) -> Result<()> {
    if !resources.unified.is_empty() {
        return Err(Error::Invalid {
            field: "linux.resources.unified",
            why: "invalid configuration: cannot use unified on cgroup v1".to_owned(),
        });
    }
    let needed = |controller, asked| needed(paths, controller, asked);
    let Resources {
        cpu,
        memory,
        pids,
        block_io,
        hugetlb,
        network,
        devices,
        rdma,
        ..
    } = resources;
    let cpuset_needed = needed(Controller::Cpuset, cpuset::asked(cpu))?;
    // Nothing set still means that an empty set must be filled.
    if let Some(dir) = cpuset_needed.or_else(|| paths.legacy(Controller::Cpuset)) {
        cpuset::apply(dir, cpu)?;
    }
    if let Some(dir) = needed(Controller::Devices, devices::asked(devices))? {
        devices::apply(dir, devices)?;
    }
    if let Some(dir) = needed(Controller::Memory, memory::asked(memory))? {
        memory::apply(dir, memory)?;
    }
    if let Some(dir) = needed(Controller::Cpu, cpu::asked(cpu))? {
        cpu::apply(dir, cpu)?;
    }
    if let Some(dir) = needed(Controller::Pids, pids::asked(pids))? {
        pids::apply(dir, pids)?;
    } else if let Some(dir) = paths.legacy(Controller::Pids) {
        pids::apply(dir, pids)?;
    }
    if let Some(dir) = needed(Controller::Blkio, blkio::asked(block_io))? {
        blkio::apply(dir, block_io)?;
    }
    if let Some(dir) = needed(Controller::Hugetlb, hugetlb::asked(hugetlb))? {
        hugetlb::apply(dir, hugetlb, "limit_in_bytes")?;
    }
    if let Some(dir) = needed(Controller::NetCls, net::asked_class(network))? {
        net::apply_class(dir, network)?;
    }
    if let Some(dir) = needed(Controller::NetPrio, net::asked_priorities(network))? {
        net::apply_priorities(dir, network)?;
    }
    if let Some(dir) = needed(Controller::Rdma, rdma::asked(rdma))? {
        rdma::apply(dir, rdma)?;
    }
    Ok(())
}

/// Where to write when something is asked; an error when it cannot be written anywhere.
fn needed<'p>(
    paths: &'p CgroupPaths,
    controller: Controller,
    asked: Option<&'static str>,
) -> Result<Option<&'p Path>> {
    let Some(field) = asked else { return Ok(None) };
    let missing = || Error::NoController {
        field,
        controller: controller.name().to_owned(),
    };
    paths.legacy(controller).map(Some).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::file::tests::{directory, written};
    use crate::hierarchies::{Kind, Layout};
    use crate::paths::CgroupDir;

    /// The directory stands for the hierarchies of these controllers.
    fn paths(dir: &Path, controllers: &[Controller]) -> CgroupPaths {
        let place = |controller: &Controller| CgroupDir {
            kind: Kind::V1(vec![*controller]),
            names: controller.name().to_owned(),
            mount_point: dir.to_owned(),
            path: dir.to_owned(),
            made: Vec::new(),
        };
        CgroupPaths {
            layout: Layout::V1,
            dirs: controllers.iter().map(place).collect(),
        }
    }

    #[test]
    fn missing_controller_matters_only_when_it_is_needed() {
        let dir = directory(&[]);
        let none = paths(dir.path(), &[]);
        apply(&none, &Resources::default()).unwrap();
        let mut unlimited = Resources::default();
        unlimited.pids.limit = Some(-1);
        apply(&none, &unlimited).unwrap();

        let mut asked = Resources::default();
        asked.network.class_id = Some(1);
        let error = apply(&none, &asked).unwrap_err();
        assert_eq!(
            error.to_string(),
            "linux.resources.network.classID needs the cgroup controller net_cls, \
             which is not available"
        );
    }

    #[test]
    fn limits_reach_their_controllers() {
        let dir = directory(&[("pids.max", ""), ("cpu.shares", "")]);
        let mut resources = Resources::default();
        resources.pids.limit = Some(-1);
        resources.cpu.shares = Some(2);
        apply(
            &paths(dir.path(), &[Controller::Cpu, Controller::Pids]),
            &resources,
        )
        .unwrap();
        assert_eq!(written(dir.path(), "pids.max"), ["max"]);
        assert_eq!(written(dir.path(), "cpu.shares"), ["2"]);
    }

    #[test]
    fn files_of_version_2_are_refused() {
        let unified = BTreeMap::from([("memory.high".to_owned(), "1".to_owned())]);
        let resources = Resources {
            unified,
            ..Resources::default()
        };
        let error = apply(&paths(Path::new("/nowhere"), &[]), &resources).unwrap_err();
        assert!(error.to_string().contains("unified"), "{error}");
    }
}
