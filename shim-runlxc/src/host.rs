//! What this host is: its cgroup hierarchies, security modules, capabilities. Found once per
//! process; nothing here changes anything.

use std::path::{Component, Path};

use bundle::HostFacts;
use cgroups::hierarchies::Kind;
use cgroups::{CgroupPaths, Hierarchies};
use launch::plan::{CgroupView, LegacyHierarchy, Toggle};
use seccomp::{Flag, NEW_LISTENER};
use sys::Kernel;

use crate::{Error, Result};

/// The host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its cgroups.
    pub hierarchies: Hierarchies,
    /// What decides whether a field of config.json can be honoured.
    pub facts: HostFacts,
}

impl Host {
    /// Looks at `/proc` and `/sys`.
    ///
    /// # Errors
    /// When `/proc` cannot be read or no cgroup is mounted.
    pub fn detect() -> Result<Self> {
        Ok(Self {
            hierarchies: Hierarchies::at_host()?,
            facts: facts()?,
        })
    }
}

/// What decides whether a field of config.json can be honoured.
///
/// # Errors
/// When the kernel does not tell its version.
pub fn facts() -> Result<HostFacts> {
    Ok(facts_with(Kernel::running().map_err(Error::io("uname"))?))
}

/// What files tell, and what of seccomp the kernel has by its version: asking it takes a system
/// call with a filter, and a filter that it does not take is refused by name when it is loaded.
fn facts_with(kernel: Kernel) -> HostFacts {
    let mut facts = HostFacts::read(Path::new("/"));
    if !sys::process::has_no_new_privs() {
        facts.no_new_privs = Toggle::Off;
    }
    if kernel.at_least(3, 5) {
        facts.seccomp_filter = Toggle::On;
    }
    for (bit, (major, minor)) in [
        (Flag::Log.bit(), (4, 14)),
        (Flag::SpecAllow.bit(), (4, 17)),
        (NEW_LISTENER, (5, 0)),
        (Flag::WaitKillableRecv.bit(), (5, 19)),
    ] {
        if kernel.at_least(major, minor) {
            facts.seccomp_flags |= bit;
        }
    }
    facts
}

/// Environment variable by which containers may run without what the kernel lacks: for callers that
/// can set neither options nor flags.
pub const HARDENING_OPTIONAL: &str = "RUNLXC_HARDENING_OPTIONAL";

/// Whether a container may run without what this kernel lacks of no_new_privs and filters: said by the
/// caller, or by [`HARDENING_OPTIONAL`].
///
/// # Errors
/// [`Error::Usage`] for a value of the variable that is none.
pub fn hardening_optional(said: bool) -> Result<Toggle> {
    let value = std::env::var_os(HARDENING_OPTIONAL).unwrap_or_default();
    let by_environment = match value.to_str() {
        Some("true" | "1") => true,
        Some("" | "false" | "0") => false,
        _ => {
            let why = format!("{HARDENING_OPTIONAL}={value:?} is neither true nor false");
            return Err(Error::Usage(why));
        }
    };
    Ok(if said || by_environment {
        Toggle::On
    } else {
        Toggle::Off
    })
}

/// What a mount of type `cgroup` shows of these cgroups.
#[must_use]
pub fn cgroup_view(paths: &CgroupPaths) -> CgroupView {
    if let [only] = paths.dirs.as_slice()
        && only.kind == Kind::Unified
    {
        return CgroupView::Unified {
            own: text(&only.path),
        };
    }
    let hierarchies = paths.dirs.iter().map(|dir| {
        let name = last_name(&dir.mount_point);
        let links = dir
            .names
            .split(',')
            .filter(|link| *link != name && !link.contains('=') && !link.is_empty());
        let options = if dir.names.starts_with("name=") {
            format!("none,{}", dir.names)
        } else {
            dir.names.clone()
        };
        LegacyHierarchy {
            links: links.map(str::to_owned).collect(),
            own: text(&dir.path),
            options,
            name,
        }
    });
    CgroupView::Legacy {
        hierarchies: hierarchies.collect(),
    }
}

fn last_name(path: &Path) -> String {
    match path.components().next_back() {
        Some(Component::Normal(name)) => name.to_string_lossy().into_owned(),
        _ => "cgroup".to_owned(),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(mountinfo: &str, cgroup: &str) -> CgroupView {
        let hierarchies = Hierarchies::detect(mountinfo, cgroup).unwrap();
        cgroup_view(&CgroupPaths::new(&hierarchies, "/x/c").unwrap())
    }

    #[test]
    fn joint_hierarchies_are_linked_by_each_controller() {
        let mountinfo = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                         40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let CgroupView::Legacy { hierarchies } =
            view(mountinfo, "2:cpu,cpuacct:/\n1:name=systemd:/\n")
        else {
            panic!("not legacy")
        };
        let told: Vec<_> = hierarchies
            .iter()
            .map(|h| {
                (
                    h.name.as_str(),
                    h.options.as_str(),
                    h.own.as_str(),
                    h.links.join(" "),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (
                    "cpu,cpuacct",
                    "cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct/x/c",
                    "cpu cpuacct".to_owned()
                ),
                (
                    "systemd",
                    "none,name=systemd",
                    "/sys/fs/cgroup/systemd/x/c",
                    String::new()
                ),
            ]
        );
    }

    #[test]
    fn seccomp_flags_come_with_the_kernel() {
        let flags = |release| facts_with(Kernel::parse(release).unwrap()).seccomp_flags;
        assert_eq!(
            (flags("3.10.0"), flags("4.14.1"), flags("6.1.0")),
            (0, 2, 0x2e)
        );
        assert_eq!(
            facts_with(Kernel::parse("2.6.32").unwrap()).seccomp_filter,
            Toggle::Off
        );
    }

    #[test]
    fn version_2_alone_is_one_directory() {
        let mountinfo = "32 31 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            view(mountinfo, "0::/\n"),
            CgroupView::Unified {
                own: "/sys/fs/cgroup/x/c".to_owned()
            }
        );
    }
}
