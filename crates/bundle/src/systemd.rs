//! What mode `systemd` of a rich container asks of a bundle, beside pid 1: tmpfs, the container's
//! own cgroup to write in, a cgroup namespace. Pure.

use std::path::Path;

use launch::plan::{
    CgroupView, InitPlan, LegacyHierarchy, PidOne, PlannedMount, SystemdPlan, Toggle,
};
use launch::systemd::OWN;
use mounts::flags::{NODEV, NOEXEC, NOSUID, RDONLY};
use mounts::{Mount, MountOptions};

use crate::namespaces::Namespaces;
use crate::plan::{Namespace, NamespaceKind, PlanContext};
use crate::rich::Rich;
use crate::{Error, Result};

const RUN: &str = "/run";
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

/// Kinds of units that may be asked for; a name without one is a service.
const KINDS: [&str; 5] = ["service", "socket", "timer", "path", "target"];

/// systemd's own bound (UNIT_NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// Names of units from a list with commas.
///
/// # Errors
/// With the name that is none.
pub(crate) fn services(field: &str, text: &str) -> Result<Vec<String>> {
    text.split(',')
        .map(|word| {
            let name = match word.rsplit_once('.') {
                Some((_, kind)) if KINDS.contains(&kind) => word.to_owned(),
                _ => format!("{word}.service"),
            };
            let is_sound = |c: char| c.is_ascii_alphanumeric() || ":_.@\\-".contains(c);
            if word.is_empty()
                || word.starts_with('.')
                || name.len() > NAME_BYTES_MAX
                || !word.chars().all(is_sound)
            {
                let why = format!("{word:?} is no name of a service, as in cron,ssh");
                return Err(Error::invalid(field, why));
            }
            Ok(name)
        })
        .collect()
}

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
    if !namespaces.has(NamespaceKind::Cgroup) {
        namespaces.0.push(Namespace {
            kind: NamespaceKind::Cgroup,
            path: None,
        });
        namespaces.0.sort_by_key(|namespace| namespace.kind);
    }
    init.cgroup_namespace = Toggle::On;
    own_tmpfs(&rich.asked_by, &mut init.mounts)?;
    init.mounts.retain(|planned| !is_at(planned, CGROUPS));
    if matches!(context.cgroup_view, CgroupView::Unified { .. }) {
        init.readonly_paths.extend(limits());
    }
    init.mounts
        .extend(cgroups(&rich.asked_by, &context.cgroup_view)?);
    init.pid_one = PidOne::Systemd(SystemdPlan {
        id: context.id.clone(),
        user: rich.user.clone(),
        services: rich.services.clone(),
    });
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

fn check(rich: &Rich, init: &InitPlan, namespaces: &Namespaces) -> Result<()> {
    let invalid = |why: &str| {
        Err(Error::invalid(
            &*rich.asked_by,
            format!("mode systemd {why}"),
        ))
    };
    let unsupported = |why: &str| {
        let why = format!("mode systemd {why}");
        Err(Error::unsupported(&*rich.asked_by, why))
    };
    if namespaces.has(NamespaceKind::User) {
        return unsupported("in a user namespace");
    }
    if init.process.preserve_fds > 0 {
        return unsupported("with descriptors from 3 up for the program");
    }
    if !namespaces.makes(NamespaceKind::Pid) {
        return invalid("needs a new pid namespace, and linux.namespaces has none");
    }
    if namespaces.path_of(NamespaceKind::Cgroup).is_some() {
        return invalid("needs a new cgroup namespace, and linux.namespaces joins one");
    }
    Ok(())
}

/// `/run`, `/run/lock`, `/tmp` where nothing is asked for there, and a place of ours.
fn own_tmpfs(asked_by: &str, mounts: &mut Vec<PlannedMount>) -> Result<()> {
    let is_there = |mounts: &[PlannedMount], path| mounts.iter().any(|other| is_at(other, path));
    let mut at = match mounts.iter().rposition(|planned| is_at(planned, RUN)) {
        Some(index) => {
            check_run(asked_by, &mounts[index])?;
            index + 1
        }
        None => {
            mounts.insert(0, tmpfs(RUN, NOSUID | NODEV, "mode=755"));
            1
        }
    };
    for (path, flags, data) in [
        ("/run/lock", NOSUID | NODEV | NOEXEC, "mode=1777,size=5m"),
        (OWN, NOSUID | NODEV, "mode=700,size=64m"),
    ] {
        if !is_there(mounts, path) {
            mounts.insert(at, tmpfs(path, flags, data));
            at += 1;
        }
    }
    if !is_there(mounts, "/tmp") {
        mounts.insert(0, tmpfs("/tmp", NOSUID | NODEV, "mode=1777"));
    }
    Ok(())
}

/// Units are written there, and not to a directory of the host.
fn check_run(asked_by: &str, planned: &PlannedMount) -> Result<()> {
    match planned {
        PlannedMount::Plain(mount)
            if mount.fstype == "tmpfs"
                && !mount.is_bind()
                && mount.options.flags_set & RDONLY == 0 =>
        {
            Ok(())
        }
        _ => {
            let why = "mode systemd needs a writable tmpfs at /run, and mounts has something else";
            Err(Error::invalid(asked_by, why))
        }
    }
}

fn tmpfs(target: &str, flags: u64, data: &str) -> PlannedMount {
    PlannedMount::Plain(mount(target, "tmpfs", flags, data))
}

fn mount(target: &str, fstype: &str, flags: u64, data: &str) -> Mount {
    Mount {
        source: fstype.to_owned(),
        target: target.to_owned(),
        fstype: fstype.to_owned(),
        options: MountOptions {
            flags_set: flags,
            data: data.to_owned(),
            ..MountOptions::none()
        },
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

fn is_at(planned: &PlannedMount, path: &str) -> bool {
    Path::new(target(planned)) == Path::new(path)
}

fn target(planned: &PlannedMount) -> &str {
    let (PlannedMount::Plain(mount) | PlannedMount::Cgroup { mount, .. }) = planned;
    &mount.target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_names_of_units() {
        let parse = |text| services("f", text).map_err(|error| error.to_string());
        assert_eq!(
            parse("cron,web@1,x.socket,a.b").unwrap(),
            ["cron.service", "web@1.service", "x.socket", "a.b.service"]
        );
        for (text, word) in [
            ("", ""),
            ("a,", ""),
            ("a b", "a b"),
            ("../x", "../x"),
            ("ü", "ü"),
        ] {
            let why = format!("f: {word:?} is no name of a service, as in cron,ssh");
            assert_eq!(parse(text).unwrap_err(), why);
        }
    }

    fn targets(mounts: &[PlannedMount]) -> Vec<&str> {
        mounts.iter().map(target).collect()
    }

    #[test]
    fn tmpfs_come_before_what_is_mounted_below_them() {
        let mut mounts = vec![tmpfs("/proc", 0, ""), tmpfs("/run/secrets", 0, "")];
        own_tmpfs("f", &mut mounts).unwrap();
        let all = ["/tmp", "/run", "/run/lock", OWN, "/proc", "/run/secrets"];
        assert_eq!(targets(&mounts), all);
        let mut mounts = vec![tmpfs("/run/", 0, ""), tmpfs("/tmp", 0, "")];
        own_tmpfs("f", &mut mounts).unwrap();
        assert_eq!(targets(&mounts), ["/run/", "/run/lock", OWN, "/tmp"]);
        let mut mounts = vec![PlannedMount::Plain(mount(RUN, "ext4", 0, ""))];
        assert!(own_tmpfs("f", &mut mounts).is_err());
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
