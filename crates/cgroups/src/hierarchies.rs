//! Which cgroup hierarchies this host has and where they are mounted.
//!
//! Found by parsing two texts of /proc; nothing here makes or changes a cgroup.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the host mounts cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// Version 1 alone.
    V1,
    /// Version 1 for the controllers and a version 2 without controllers beside them.
    Hybrid,
    /// Version 2 alone.
    V2,
}

/// A controller of version 1, or the named hierarchy of systemd.
///
/// Hierarchies of other names, and the controllers `ns` (clones cgroups by itself) and `debug`,
/// are left alone, as by runc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Controller {
    /// `cpuset`.
    Cpuset,
    /// `devices`.
    Devices,
    /// `memory`.
    Memory,
    /// `cpu`.
    Cpu,
    /// `cpuacct`.
    Cpuacct,
    /// `pids`.
    Pids,
    /// `blkio`.
    Blkio,
    /// `hugetlb`.
    Hugetlb,
    /// `net_cls`.
    NetCls,
    /// `net_prio`.
    NetPrio,
    /// `perf_event`.
    PerfEvent,
    /// `freezer`.
    Freezer,
    /// `rdma`.
    Rdma,
    /// `misc`.
    Misc,
    /// `name=systemd`.
    Systemd,
}

impl Controller {
    /// All of them, in the order in which a task joins them (runc's order).
    pub const ALL: [Self; 15] = [
        Self::Cpuset,
        Self::Devices,
        Self::Memory,
        Self::Cpu,
        Self::Cpuacct,
        Self::Pids,
        Self::Blkio,
        Self::Hugetlb,
        Self::NetCls,
        Self::NetPrio,
        Self::PerfEvent,
        Self::Freezer,
        Self::Rdma,
        Self::Misc,
        Self::Systemd,
    ];

    /// As the kernel spells it in mount options and in /proc/PID/cgroup.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpuset => "cpuset",
            Self::Devices => "devices",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Pids => "pids",
            Self::Blkio => "blkio",
            Self::Hugetlb => "hugetlb",
            Self::NetCls => "net_cls",
            Self::NetPrio => "net_prio",
            Self::PerfEvent => "perf_event",
            Self::Freezer => "freezer",
            Self::Rdma => "rdma",
            Self::Misc => "misc",
            Self::Systemd => "name=systemd",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|controller| controller.name() == name)
    }
}

/// Which version a hierarchy speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Version 1 with these controllers, sorted; never empty.
    V1(Vec<Controller>),
    /// Version 2.
    Unified,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version and controllers.
    pub kind: Kind,
    /// The names that the kernel lists for it, e.g. `cpu,cpuacct` or `name=systemd`: the mount
    /// options that mount it again. Empty for version 2.
    pub names: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The directory of the caller's own cgroup, below `mount_point`.
    pub own: PathBuf,
}

/// All hierarchies that a container joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 1 ones in the order of [`Controller::ALL`], then the unified one.
    list: Vec<Hierarchy>,
    layout: Layout,
}

impl Hierarchies {
    /// Those of this host, seen from this process.
    pub fn at_host() -> Result<Self> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|source| Error::Read {
                path: PathBuf::from(path),
                source,
            })
        };
        Self::detect(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
    }

    /// Those that the texts of /proc/PID/mountinfo and /proc/PID/cgroup tell of (proc(5),
    /// cgroups(7)).
    pub fn detect(mountinfo: &str, proc_cgroup: &str) -> Result<Self> {
        let mounts: Vec<CgroupMount<'_>> =
            mountinfo.lines().filter_map(CgroupMount::parse).collect();
        let mut list = Vec::new();
        let mut unified_own = None;
        for line in proc_cgroup.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(names), Some(own)) = (fields.next(), fields.next(), fields.next())
            else {
                return Err(Error::Malformed {
                    path: PathBuf::from("/proc/self/cgroup"),
                    text: line.to_owned(),
                });
            };
            if id == "0" && names.is_empty() {
                unified_own = Some(own);
                continue;
            }
            list.extend(legacy(&mounts, names, own));
        }
        list.sort_by_key(|hierarchy| match &hierarchy.kind {
            Kind::V1(controllers) => controllers.first().copied(),
            Kind::Unified => None,
        });
        let unified = unified(&mounts, &list, unified_own.unwrap_or("/"));
        let layout = match (list.is_empty(), unified.is_some()) {
            (true, false) => return Err(Error::NoHierarchy),
            (true, true) => Layout::V2,
            (false, true) => Layout::Hybrid,
            (false, false) => Layout::V1,
        };
        list.extend(unified);
        Ok(Self { list, layout })
    }

    /// How the host mounts them.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.list.iter()
    }
}

/// A mounted cgroup file system as mountinfo has it.
struct CgroupMount<'a> {
    root: String,
    mount_point: PathBuf,
    version_2: bool,
    options: Vec<&'a str>,
}

impl<'a> CgroupMount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let version_2 = match after.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let mut before = before.split(' ').skip(3);
        Some(Self {
            root: unescape(before.next()?),
            mount_point: PathBuf::from(unescape(before.next()?)),
            version_2,
            options: after.nth(1)?.split(',').collect(),
        })
    }

    /// Where a cgroup shows below this mount, if it does: in a container without a cgroup
    /// namespace the mount's root is a cgroup itself.
    fn place(&self, own: &str) -> PathBuf {
        let below = Path::new(own)
            .strip_prefix(&self.root)
            .unwrap_or(Path::new(""));
        below
            .iter()
            .fold(self.mount_point.clone(), |path, name| path.join(name))
    }
}

/// The hierarchy that /proc/PID/cgroup calls `names`, unless it is of no interest or not mounted.
fn legacy(mounts: &[CgroupMount<'_>], names: &str, own: &str) -> Option<Hierarchy> {
    let mut controllers: Vec<Controller> = names.split(',').filter_map(Controller::parse).collect();
    controllers.sort();
    let controllers = Some(controllers).filter(|known| !known.is_empty())?;
    let holds = |mount: &&CgroupMount<'_>| {
        !mount.version_2 && names.split(',').all(|name| mount.options.contains(&name))
    };
    let mount = preferred(mounts.iter().filter(holds), own)?;
    Some(Hierarchy {
        kind: Kind::V1(controllers),
        names: names.to_owned(),
        mount_point: mount.mount_point.clone(),
        own: mount.place(own),
    })
}

/// Version 2: any mount when it is alone; beside version 1 only a mount that lies next to the
/// others (systemd's `/sys/fs/cgroup/unified`). One that a tool mounted elsewhere for itself is
/// not the host's, and runc does not join it either.
fn unified(mounts: &[CgroupMount<'_>], legacy: &[Hierarchy], own: &str) -> Option<Hierarchy> {
    let beside = |mount: &&CgroupMount<'_>| {
        let parent = mount.mount_point.parent();
        legacy.is_empty()
            || legacy
                .iter()
                .any(|other| other.mount_point.parent() == parent)
    };
    let mount = preferred(
        mounts.iter().filter(|mount| mount.version_2).filter(beside),
        own,
    )?;
    Some(Hierarchy {
        kind: Kind::Unified,
        names: String::new(),
        mount_point: mount.mount_point.clone(),
        own: mount.place(own),
    })
}

/// Of several mounts of one hierarchy: the one at the customary place, else the first.
fn preferred<'m, 'a: 'm>(
    candidates: impl Iterator<Item = &'m CgroupMount<'a>>,
    own: &str,
) -> Option<&'m CgroupMount<'a>> {
    candidates.reduce(|best, next| {
        let rank = |mount: &CgroupMount<'_>| {
            (
                Path::new(own).starts_with(&mount.root),
                mount.mount_point.starts_with("/sys/fs/cgroup"),
            )
        };
        if rank(next) > rank(best) { next } else { best }
    })
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 4).unwrap_or_default();
        match u8::from_str_radix(digits, 8) {
            Ok(byte) if byte.is_ascii() => {
                text.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                text.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, root: &str, fstype: &str, options: &str) -> String {
        format!("30 20 0:30 {root} {point} rw,nosuid shared:9 - {fstype} cgroup rw,{options}\n")
    }

    /// Mount points and own directories found, in order, with the layout.
    fn check(mountinfo: &str, proc_cgroup: &str, layout: Layout, expected: &[(&str, &str, &str)]) {
        let found = Hierarchies::detect(mountinfo, proc_cgroup).unwrap();
        let shown: Vec<(&str, &str, &str)> = found
            .iter()
            .map(|one| {
                (
                    one.names.as_str(),
                    one.mount_point.to_str().unwrap(),
                    one.own.to_str().unwrap(),
                )
            })
            .collect();
        assert_eq!((found.layout(), shown.as_slice()), (layout, expected));
    }

    #[test]
    fn hybrid_host_lists_controllers_in_joining_order_and_the_unified_one_last() {
        let mountinfo = [
            mount("/sys/fs/cgroup/unified", "/", "cgroup2", "nsdelegate"),
            mount(
                "/sys/fs/cgroup/systemd",
                "/",
                "cgroup",
                "xattr,name=systemd",
            ),
            mount("/sys/fs/cgroup/cpu,cpuacct", "/", "cgroup", "cpu,cpuacct"),
            mount("/sys/fs/cgroup/cpuset", "/", "cgroup", "cpuset,noprefix"),
            mount("/run/other", "/", "cgroup2", ""),
            "31 20 0:31 / /sys rw - sysfs sysfs rw\n".to_owned(),
        ]
        .concat();
        check(
            &mountinfo,
            "4:name=systemd:/init\n3:cpuset:/\n2:cpu,cpuacct:/a/b\n0::/u\n",
            Layout::Hybrid,
            &[
                ("cpuset", "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/cpuset"),
                (
                    "cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct/a/b",
                ),
                (
                    "name=systemd",
                    "/sys/fs/cgroup/systemd",
                    "/sys/fs/cgroup/systemd/init",
                ),
                ("", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/u"),
            ],
        );
    }

    #[test]
    fn version_2_alone_prefers_the_customary_mount() {
        let mountinfo =
            mount("/mnt/c", "/", "cgroup2", "") + &mount("/sys/fs/cgroup", "/", "cgroup2", "");
        check(
            &mountinfo,
            "0::/user.slice/x.scope\n",
            Layout::V2,
            &[("", "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/x.scope")],
        );
    }

    #[test]
    fn version_1_without_a_version_2_beside_it_is_not_hybrid() {
        let mountinfo = mount("/cgroup/memory", "/", "cgroup", "memory")
            + &mount("/run/v2", "/", "cgroup2", "");
        check(
            &mountinfo,
            "1:memory:/\n0::/\n",
            Layout::V1,
            &[("memory", "/cgroup/memory", "/cgroup/memory")],
        );
    }

    #[test]
    fn hierarchies_nobody_joins_are_left_out() {
        let mountinfo = [
            mount("/c/ns", "/", "cgroup", "ns"),
            mount("/c/elogind", "/", "cgroup", "name=elogind"),
            mount("/c/debug,pids", "/", "cgroup", "pids,debug"),
        ]
        .concat();
        check(
            &mountinfo,
            "3:ns:/\n2:name=elogind:/\n1:debug,pids:/\n9:rdma:/\n",
            Layout::V1,
            &[("debug,pids", "/c/debug,pids", "/c/debug,pids")],
        );
    }

    #[test]
    fn own_cgroup_is_seen_through_the_root_of_the_mount() {
        let mountinfo = mount(
            "/sys/fs/cgroup/my\\040pids",
            "/docker/abc",
            "cgroup",
            "pids",
        );
        let place = |own: &str, expected: &str| {
            let at = "/sys/fs/cgroup/my pids";
            check(
                &mountinfo,
                &format!("1:pids:{own}\n"),
                Layout::V1,
                &[("pids", at, expected)],
            );
        };
        place("/docker/abc/x", "/sys/fs/cgroup/my pids/x");
        place("/elsewhere", "/sys/fs/cgroup/my pids");
    }

    #[test]
    fn host_without_cgroups_is_an_error() {
        assert!(matches!(
            Hierarchies::detect("", "0::/\n"),
            Err(Error::NoHierarchy)
        ));
        assert!(matches!(
            Hierarchies::detect("", "nonsense\n"),
            Err(Error::Malformed { .. })
        ));
    }
}
