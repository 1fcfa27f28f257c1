//! What was done to the host for a container, on disk before it is done.
//!
//! `delete` reads this and nothing else, so it works after kill -9 of anything. One write before
//! the first process and the first cgroup, one when init's pid is known.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use bundle::annotations::LEFT_OUT;
use bundle::capabilities::NONE as NO_CAPABILITIES;
use bundle::rich::hooks::Hooks;
use bundle::rich::ready::Readiness;
use bundle::{Namespace, NamespaceKind, Plan, SeccompListener};
use cgroups::resctrl::Class;
use cgroups::{CgroupDir, CgroupPaths};
use launch::plan::{CapabilitySets, Hook, Labels, PidOne, Scheduling, Toggle};
use serde::{Deserialize, Serialize};

use crate::container::START_LIMIT;
use crate::create::with_hooks;
use crate::lxcfs::View;
use crate::process::ProcessId;
use crate::scope::{Scope, ScopeState};
use crate::shared_mounts::SharedMounts;
use crate::state_dir::StateDir;
use crate::{Error, Result};

/// Version of the file's form; a later one is refused.
const VERSION: u32 = 1;

/// The journal of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Journal {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The container's id.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system on the host.
    pub rootfs: PathBuf,
    /// When `create` began, in nanoseconds since 1970.
    pub created_ns: u64,
    /// Annotations of config.json.
    pub annotations: BTreeMap<String, String>,
    /// LXC's name of it.
    pub lxc_name: String,
    /// Cgroups LXC makes, by their path from the root of each hierarchy; gone once init stands in
    /// its own.
    pub lxc_cgroups: Vec<String>,
    /// The container's own cgroup.
    pub cgroup: CgroupPaths,
    /// The scope of systemd that this cgroup is; none: we made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Its class of resctrl; none: that of its caller, or one that was there by a priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<Class>,
    /// Namespaces that an exec must join.
    pub namespaces: Vec<NamespaceKind>,
    /// The network namespace that it was given by a path; none: its own, or the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PathBuf>,
    /// Whether init's end takes all others along.
    pub pid_namespace: PidNamespace,
    /// Seconds that the start may take, startContainer hooks included.
    pub start_limit_s: u64,
    /// Capabilities of an exec that names none.
    pub capabilities: CapabilitySets,
    /// Labels of an exec that names none.
    #[serde(default)]
    pub labels: Labels,
    /// Who is pid 1 once the program runs.
    #[serde(default)]
    pub pid_one: PidOne,
    /// What an exec has of the container's memory policy and execution domain.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// What it sees by lxcfs; none: the host's.
    #[serde(default)]
    pub view: Option<View>,
    /// The mount namespace, when it belongs to others, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_mounts: Option<SharedMounts>,
    /// Who is asked about system calls of its programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp_listener: Option<SeccompListener>,
    /// Hooks for after the start.
    pub hooks_poststart: Vec<Hook>,
    /// Hooks for after the end.
    pub hooks_poststop: Vec<Hook>,
    /// What runs in a rich container before its program and after its end.
    #[serde(default, skip_serializing_if = "Hooks::is_none")]
    pub rich_hooks: Hooks,
    /// What its start waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
    /// Init; none until the stub said hello. Until then nobody of ours is in `cgroup`.
    pub init: Option<ProcessId>,
    /// Whether `create` came to its end.
    pub phase: Phase,
}

/// How far `create` got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not to its end.
    Creating,
    /// Init waits at the start socket, or is past it.
    Created,
}

/// Whose pid namespace the container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidNamespace {
    /// Its own: the kernel kills all when init ends.
    Own,
    /// The host's or another container's: processes may outlive init.
    Shared,
}

impl Journal {
    /// The version to write.
    pub const VERSION: u32 = VERSION;

    /// The first journal of a container in which LXC has no cgroups; `lxc_name` is its name to LXC.
    pub(crate) fn of(plan: &Plan, lxc_name: String, cgroup: CgroupPaths) -> Self {
        let own_pids = |n: &Namespace| n.kind == NamespaceKind::Pid && n.path.is_none();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let start_hooks = &plan.init.start_container_hooks;
        Self {
            version: VERSION,
            id: plan.id.clone(),
            bundle: plan.bundle.clone(),
            rootfs: PathBuf::from(&plan.init.root.path),
            created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            annotations: plan.annotations.clone(),
            lxc_name,
            lxc_cgroups: Vec::new(),
            cgroup,
            scope: None,
            resctrl: None,
            namespaces: plan.namespaces.iter().map(|n| n.kind).collect(),
            network: network_path(&plan.namespaces),
            pid_namespace: if plan.namespaces.iter().any(own_pids) {
                PidNamespace::Own
            } else {
                PidNamespace::Shared
            },
            start_limit_s: with_hooks(START_LIMIT, start_hooks).as_secs()
                + services_limit_s(&plan.init.pid_one),
            capabilities: plan.init.process.capabilities.unwrap_or(NO_CAPABILITIES),
            labels: plan.init.process.labels.clone(),
            pid_one: without_services(&plan.init.pid_one),
            scheduling: plan.init.process.scheduling.clone(),
            view: None,
            shared_mounts: None,
            seccomp_listener: plan.seccomp_listener.clone(),
            hooks_poststart: plan.hooks_poststart.clone(),
            hooks_poststop: plan.hooks_poststop.clone(),
            rich_hooks: plan.rich_hooks.clone(),
            ready: plan.ready.clone(),
            init: None,
            phase: Phase::Creating,
        }
    }

    /// Writes it, atomically for readers. No fsync: the state root is on a tmpfs, and after a
    /// crash of the host there is nothing left to undo.
    ///
    /// # Errors
    /// With the file's name.
    pub fn write(&self, dir: &StateDir) -> Result<()> {
        let path = dir.journal();
        let text = serde_json::to_vec(self).map_err(|e| Error::Journal {
            path: path.clone(),
            why: e.to_string(),
        })?;
        let temporary = path.with_extension("new");
        StateDir::write(&temporary, &text)?;
        std::fs::rename(&temporary, &path).map_err(Error::on("rename to", &path))
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Journal`] when it is not ours.
    pub fn read(dir: &StateDir) -> Result<Self> {
        let path = dir.journal();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(Error::NotFound);
            }
            Err(e) => return Err(Error::on("read", &path)(e)),
        };
        Self::parse(&text).map_err(|why| Error::Journal { path, why })
    }

    /// Whether it runs without something that the kernel lacks: its execs may, too.
    #[must_use]
    pub fn hardening_optional(&self) -> Toggle {
        if self.annotations.contains_key(LEFT_OUT) {
            Toggle::On
        } else {
            Toggle::Off
        }
    }

    /// Whether whoever is in its cgroup is of the container.
    #[must_use]
    pub fn has_entered(&self) -> bool {
        let scope = self.scope.as_ref();
        self.init.is_some() && scope.is_none_or(|scope| scope.state == ScopeState::Ours)
    }

    /// The directories of LXC's cgroups.
    pub fn lxc_paths(&self) -> impl Iterator<Item = CgroupPaths> + '_ {
        self.lxc_cgroups.iter().map(|name| {
            let dirs = self.cgroup.dirs.iter().map(|dir| CgroupDir {
                path: dir.mount_point.join(name.trim_start_matches('/')),
                made: Vec::new(),
                ..dir.clone()
            });
            CgroupPaths {
                layout: self.cgroup.layout,
                dirs: dirs.collect(),
            }
        })
    }

    fn parse(text: &[u8]) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!(
                "version {version}, but this program knows {VERSION}"
            ));
        }
        serde_json::from_slice(text).map_err(|e| e.to_string())
    }
}

fn network_path(namespaces: &[Namespace]) -> Option<PathBuf> {
    let mut networks = namespaces.iter();
    let network = networks.find(|namespace| namespace.kind == NamespaceKind::Network);
    network?.path.clone()
}

/// By how much services lengthen the start.
fn services_limit_s(pid_one: &PidOne) -> u64 {
    match pid_one {
        PidOne::Stub {
            services: Some(services),
            ..
        } => services.limit_s(),
        _ => 0,
    }
}

/// Services are the affair of those inside: with them comes a plan of a process.
fn without_services(pid_one: &PidOne) -> PidOne {
    match pid_one {
        PidOne::Stub {
            rewrites, restart, ..
        } => PidOne::Stub {
            rewrites: rewrites.clone(),
            services: None,
            restart: *restart,
        },
        other => other.clone(),
    }
}

#[cfg(test)]
pub(crate) mod example {
    use cgroups::Hierarchies;
    use serde_json::{Value, json};

    use super::*;

    /// The journal of a container that was created and of which nothing is there, with these fields
    /// instead.
    pub(crate) fn journal(fields: &Value) -> Journal {
        let mountinfo = "40 31 0:37 / /nowhere rw - cgroup2 cgroup2 rw\n";
        let hierarchies = Hierarchies::detect(mountinfo, "0::/\n").unwrap();
        let mut journal = json!({
            "version": VERSION,
            "id": "c",
            "bundle": "/nowhere",
            "rootfs": "/nowhere",
            "createdNs": 0,
            "annotations": {},
            "lxcName": format!("nobody-{}", std::process::id()),
            "lxcCgroups": [],
            "cgroup": CgroupPaths::new(&hierarchies, "/c").unwrap(),
            "namespaces": [],
            "pidNamespace": "own",
            "startLimitS": 0,
            "capabilities": NO_CAPABILITIES,
            "hooksPoststart": [],
            "hooksPoststop": [],
            "init": null,
            "phase": "created",
        });
        for (field, value) in fields.as_object().unwrap() {
            journal[field] = value.clone();
        }
        serde_json::from_value(journal).unwrap()
    }
}
