//! What mode `systemd` of a rich container asks of a bundle beside what any init of an image does:
//! the container's own cgroup to write in, a cgroup namespace. Pure.

use launch::plan::{CgroupView, InitPlan, LegacyHierarchy, PidOne, PlannedMount, Toggle};
use mounts::flags::{NODEV, NOEXEC, NOSUID, RDONLY};

use crate::image_init::{check, is_at, mount, own_tmpfs, wanted};
use crate::namespaces::Namespaces;
use crate::plan::{Namespace, NamespaceKind, PlanContext};
use crate::rich::Rich;
use crate::{Error, Result};

const CGROUPS: &str = "/sys/fs/cgroup";

/// The hierarchy of version 1 that systemd keeps its units in.
const OF_SYSTEMD: &str = "none,name=systemd";

/// Limits of version 2 that a container must not lift: without `nsdelegate` the kernel lets it write
/// those of its own cgroup. Each is bound read-only; the cgroups below are systemd's.
const LIMITS: [&str; 25] = [
    "cgroup.freeze",
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.type",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.uclamp.max",
    "cpu.uclamp.min",
    "cpu.weight",
    "cpu.weight.nice",
    "cpuset.cpus",
    "cpuset.cpus.exclusive",
    "cpuset.cpus.partition",
    "cpuset.mems",
    "io.bfq.weight",
    "io.latency",
    "io.max",
    "io.prio.class",
    "io.weight",
    "misc.max",
    "pids.max",
    "rdma.max",
    "dmem.max",
    "dmem.min",
];

/// Those of the memory.
const LIMITS_OF_MEMORY: [&str; 9] = [
    "high",
    "low",
    "max",
    "min",
    "oom.group",
    "swap.high",
    "swap.max",
    "zswap.max",
    "zswap.writeback",
];

/// Sizes of huge pages, as powers of two: from 16 KiB (PowerPC) to 16 GiB (PowerPC, SPARC).
const HUGE_PAGES: std::ops::RangeInclusive<u32> = 14..=34;

/// Changes a plan to what systemd needs.
///
/// # Errors
/// A field that does not go together with it.
pub(crate) fn furnish(
    rich: &Rich,
    context: &PlanContext,
    (init, namespaces): (&mut InitPlan, &mut Namespaces),
) -> Result<()> {
    check(rich, init, namespaces)?;
    let of_cgroup = namespaces.path_of(NamespaceKind::Cgroup);
    if of_cgroup.is_some() {
        let why = "mode systemd needs a new cgroup namespace, and linux.namespaces joins one";
        return Err(Error::invalid(&*rich.asked_by, why));
    }
    if !namespaces.has(NamespaceKind::Cgroup) {
        namespaces.0.push(Namespace {
            kind: NamespaceKind::Cgroup,
            path: None,
        });
        namespaces.0.sort_by_key(|namespace| namespace.kind);
    }
    init.cgroup_namespace = Toggle::On;
    own_tmpfs(rich, &mut init.mounts)?;
    init.mounts.retain(|planned| !is_at(planned, CGROUPS));
    if matches!(context.cgroup_view, CgroupView::Unified { .. }) {
        init.readonly_paths.extend(limits());
    }
    init.mounts
        .extend(cgroups(&rich.asked_by, &context.cgroup_view)?);
    init.pid_one = PidOne::Systemd(wanted(rich, context));
    Ok(())
}

fn limits() -> impl Iterator<Item = String> {
    let memory = LIMITS_OF_MEMORY.iter();
    let memory = memory.map(|name| format!("{CGROUPS}/memory.{name}"));
    let huge = HUGE_PAGES.map(size).flat_map(|size| {
        ["max", "rsvd.max"].map(|limit| format!("{CGROUPS}/hugetlb.{size}.{limit}"))
    });
    LIMITS
        .iter()
        .map(|name| format!("{CGROUPS}/{name}"))
        .chain(memory)
        .chain(huge)
}

/// A power of two in the words of the kernel's controller (mm/hugetlb_cgroup.c).
fn size(power: u32) -> String {
    match power {
        30.. => format!("{}GB", 1 << (power - 30)),
        20.. => format!("{}MB", 1 << (power - 20)),
        _ => format!("{}KB", 1 << (power - 10)),
    }
}

/// Version 2: its own cgroup, writable. Version 1: that of `name=systemd` alone, the others to look
/// at. The unified hierarchy beside them is not shown: systemd would want to move its units there.
fn cgroups(asked_by: &str, view: &CgroupView) -> Result<Vec<PlannedMount>> {
    let flags = NOSUID | NODEV | NOEXEC;
    let CgroupView::Legacy { hierarchies } = view else {
        return Ok(vec![PlannedMount::Cgroup {
            mount: mount(CGROUPS, "cgroup", flags, ""),
            view: view.clone(),
        }]);
    };
    if !hierarchies.iter().any(|one| one.options == OF_SYSTEMD) {
        let why = "mode systemd needs the cgroup hierarchy name=systemd, and the host has none: \
                   mount it (mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd)";
        return Err(Error::unsupported(asked_by, why));
    }
    let shown = |one: &&LegacyHierarchy| one.options != OF_SYSTEMD && !one.options.is_empty();
    let shown: Vec<_> = hierarchies.iter().filter(shown).cloned().collect();
    Ok(vec![
        PlannedMount::Cgroup {
            mount: mount(CGROUPS, "cgroup", flags | RDONLY, ""),
            view: CgroupView::Legacy { hierarchies: shown },
        },
        PlannedMount::Plain(mount(
            &format!("{CGROUPS}/systemd"),
            "cgroup",
            flags,
            OF_SYSTEMD,
        )),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_init::target;

    fn targets(mounts: &[PlannedMount]) -> Vec<&str> {
        mounts.iter().map(target).collect()
    }

    #[test]
    fn one_hierarchy_of_version_1_is_writable() {
        let hierarchy = |name: &str, options: &str| LegacyHierarchy {
            name: name.to_owned(),
            options: options.to_owned(),
            own: String::new(),
            links: Vec::new(),
        };
        let hierarchies = vec![
            hierarchy("cpu", "cpu"),
            hierarchy("systemd", OF_SYSTEMD),
            hierarchy("unified", ""),
        ];
        let view = CgroupView::Legacy { hierarchies };
        let planned = cgroups("f", &view).unwrap();
        assert_eq!(targets(&planned), [CGROUPS, "/sys/fs/cgroup/systemd"]);
        let PlannedMount::Cgroup {
            mount,
            view: CgroupView::Legacy { hierarchies },
        } = &planned[0]
        else {
            panic!("{planned:?}")
        };
        assert_ne!(mount.options.flags_set & RDONLY, 0);
        assert_eq!(hierarchies.len(), 1);
        let without = cgroups(
            "f",
            &CgroupView::Legacy {
                hierarchies: vec![],
            },
        );
        assert!(without.unwrap_err().to_string().contains("name=systemd"));
    }
}
