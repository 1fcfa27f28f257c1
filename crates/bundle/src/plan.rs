//! What config.json asks for, as closed values that the host side and the stub carry out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cgroups::Priority;
use launch::image_init::style::Style;
use launch::plan::{CgroupView, Hook, InitPlan, RootEntry, Toggle};
use serde::{Deserialize, Serialize};

use crate::colocation::Colocation;
use crate::rich::hooks::Hooks;
use crate::rich::ready::Readiness;
use crate::{State, Status, View, state};

/// What the caller knows and config.json does not say.
#[derive(Debug, Clone)]
pub struct PlanContext {
    /// The container's id.
    pub id: String,
    /// What a mount of type `cgroup` shows: made from the hierarchies of the host and the
    /// container's cgroup ([`crate::Bundle::cgroups_path`] tells it beforehand).
    pub cgroup_view: CgroupView,
    /// What the host can do.
    pub host: HostFacts,
    /// Descriptors from 3 up that the program keeps, those of LISTEN_FDS included.
    pub preserve_fds: u32,
    /// Whether init gets a session keyring of its own (Off: runc's `--no-new-keyring`).
    pub new_keyring: Toggle,
    /// How the root is entered (MoveChroot: runc's `--no-pivot`).
    pub root_entry: RootEntry,
    /// Which init an image has, by the path of its root on the host: looked at for a rich container
    /// that leaves the choice of its mode to us.
    pub init_of: fn(&Path) -> Style,
}

/// Facts of the host that decide whether a field can be honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// AppArmor is enabled (`/sys/module/apparmor/parameters/enabled` is `Y`).
    pub apparmor: Toggle,
    /// SELinux is enabled (a mounted selinuxfs, and a policy: the kernel alone calls us `kernel`).
    pub selinux: Toggle,
    /// Highest capability the kernel knows.
    pub last_cap: u8,
    /// The kernel has no_new_privs (3.5, or a back-port).
    pub no_new_privs: Toggle,
    /// What the kernel lacks of no_new_privs and system call filters is left out, with a warning and
    /// the annotation [`crate::annotations::LEFT_OUT`]; else who asks for it is refused.
    pub hardening_optional: Toggle,
    /// The kernel has system call filters (3.5, or a back-port).
    pub seccomp_filter: Toggle,
    /// SECCOMP_FILTER_FLAG_* that seccomp(2) takes; 0 where there is only prctl(2).
    pub seccomp_flags: u32,
}

/// The highest capability of kernels without `/proc/sys/kernel/cap_last_cap` (before 3.2).
const LAST_CAP_WITHOUT_FILE: u8 = 33;

impl HostFacts {
    /// Reads what files tell below `root` (`/` but in tests). Which filters the kernel takes only a
    /// system call tells: the caller fills it in, until then there are none. Nor do files tell of
    /// no_new_privs: until the caller does, every kernel has it.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let apparmor = text("sys/module/apparmor/parameters/enabled").starts_with('Y');
        let selinux = root.join("sys/fs/selinux/enforce").exists()
            && text("proc/self/attr/current").trim_end_matches(['\0', '\n']) != "kernel";
        let last_cap = text("proc/sys/kernel/cap_last_cap").trim().parse();
        Self {
            apparmor: if apparmor { Toggle::On } else { Toggle::Off },
            selinux: if selinux { Toggle::On } else { Toggle::Off },
            last_cap: last_cap.unwrap_or(LAST_CAP_WITHOUT_FILE),
            no_new_privs: Toggle::On,
            hardening_optional: Toggle::Off,
            seccomp_filter: Toggle::Off,
            seccomp_flags: 0,
        }
    }
}

/// A value and what a log should say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned<T> {
    /// The value.
    pub value: T,
    /// Sentences for the operator: what was ignored and why.
    pub warnings: Vec<String>,
    /// Sentences for whoever looks for a cause: what was left out as many configurations expect.
    pub notes: Vec<String>,
}

/// The container as it will be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The container's id.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Namespaces to make or join; one not listed is the caller's own.
    pub namespaces: Vec<Namespace>,
    /// Offsets of a new time namespace's clocks, by their names in `/proc/PID/timens_offsets`.
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Links of the host that are moved into the container's network, with their names there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub net_devices: BTreeMap<String, String>,
    /// User ids of a new user namespace; empty without one.
    pub uid_maps: Vec<IdMap>,
    /// Group ids of a new user namespace; empty without one.
    pub gid_maps: Vec<IdMap>,
    /// `linux.cgroupsPath` to the letter; none: the caller's default.
    pub cgroups_path: Option<String>,
    /// Limits of the container's cgroup, device rules included.
    pub resources: cgroups::Resources,
    /// How much it matters beside others, in what `resources` do not say themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// What its annotations ask of kernels that are made for colocation.
    #[serde(default, skip_serializing_if = "Colocation::is_none")]
    pub colocation: Colocation,
    /// The class of resctrl that it is to be in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<cgroups::resctrl::Wanted>,
    /// Hooks run on the host before createRuntime ones (deprecated by the specification).
    pub hooks_prestart: Vec<Hook>,
    /// Hooks run on the host after the namespaces are made.
    pub hooks_create_runtime: Vec<Hook>,
    /// Hooks run on the host after the program was started.
    pub hooks_poststart: Vec<Hook>,
    /// Hooks run on the host after the container was deleted.
    pub hooks_poststop: Vec<Hook>,
    /// What runs in a rich container before its program and after its end.
    #[serde(default, skip_serializing_if = "Hooks::is_none")]
    pub rich_hooks: Hooks,
    /// What its start waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
    /// What pid 1 does. Its two states lack the pid: send what [`Plan::init_for`] returns.
    pub init: InitPlan,
    /// Whose resources it sees; the mounts that make it so are not among those of `init` yet.
    pub view: View,
    /// Who is asked about system calls of the program and of execs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp_listener: Option<SeccompListener>,
    /// The annotations of config.json.
    pub annotations: BTreeMap<String, String>,
    /// Sentences for the operator: what was ignored and why.
    pub warnings: Vec<String>,
    /// Sentences for whoever looks for a cause.
    pub notes: Vec<String>,
}

/// Who is asked about system calls with the action SCMP_ACT_NOTIFY (config-linux.md, Seccomp).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompListener {
    /// The stream socket that it listens on, absolute.
    pub path: PathBuf,
    /// What it is told besides.
    pub metadata: Option<String>,
}

/// By how much a clock is ahead of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// Seconds; below 0 it is behind.
    pub seconds: i64,
    /// Nanoseconds to be added, less than a second.
    pub nanoseconds: u32,
}

impl Plan {
    /// The OCI state for a hook at this moment.
    #[must_use]
    pub fn state(&self, status: Status, pid: i32) -> String {
        let state = State {
            oci_version: state::OCI_VERSION,
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        state.to_json()
    }

    /// What to send to pid 1 once its host pid is known.
    #[must_use]
    pub fn init_for(&self, pid: i32) -> InitPlan {
        let mut init = InitPlan {
            state_creating: self.state(Status::Creating, pid),
            state_created: self.state(Status::Created, pid),
            ..self.init.clone()
        };
        // execCPUAffinity is for those that join (config.md, Process).
        init.process.scheduling.cpus_initial.clear();
        init.process.scheduling.cpus.clear();
        init
    }
}

/// A namespace of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Which kind.
    pub kind: NamespaceKind,
    /// Absolute path of an existing one to join; none: a new one.
    pub path: Option<PathBuf>,
}

/// The kinds of namespaces, in the order in which they are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NamespaceKind {
    /// `user`.
    User,
    /// `cgroup`.
    Cgroup,
    /// `ipc`.
    Ipc,
    /// `uts`.
    Uts,
    /// `network`.
    Network,
    /// `pid`.
    Pid,
    /// `time`.
    Time,
    /// `mount`.
    Mount,
}

impl NamespaceKind {
    /// All of them, in the order in which they are joined.
    pub const ALL: [Self; 8] = [
        Self::User,
        Self::Cgroup,
        Self::Ipc,
        Self::Uts,
        Self::Network,
        Self::Pid,
        Self::Time,
        Self::Mount,
    ];

    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Network => "network",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::Mount => "mount",
        }
    }

    /// The name below `/proc/PID/ns`; also LXC's word (`lxc.namespace.clone`).
    #[must_use]
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Mount => "mnt",
            other => other.as_str(),
        }
    }

    /// The CLONE_NEW* flag.
    #[must_use]
    pub fn clone_flag(self) -> i32 {
        match self {
            Self::User => 0x1000_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Ipc => 0x0800_0000,
            Self::Uts => 0x0400_0000,
            Self::Network => 0x4000_0000,
            Self::Pid => 0x2000_0000,
            Self::Time => 0x80,
            Self::Mount => 0x2_0000,
        }
    }
}

/// A range of ids of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub container_id: u32,
    /// First id outside.
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_files_below_a_root() {
        let root = tempfile::tempdir().unwrap();
        let check = |apparmor, selinux, last_cap| {
            let facts = HostFacts::read(root.path());
            assert_eq!(
                (facts.apparmor, facts.selinux, facts.last_cap),
                (apparmor, selinux, last_cap)
            );
            assert_eq!(
                (facts.seccomp_filter, facts.seccomp_flags),
                (Toggle::Off, 0)
            );
        };
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        check(Toggle::Off, Toggle::Off, 33);
        write("sys/module/apparmor/parameters/enabled", "N\n");
        write("proc/sys/kernel/cap_last_cap", "40\n");
        check(Toggle::Off, Toggle::Off, 40);
        write("sys/module/apparmor/parameters/enabled", "Y\n");
        write("sys/fs/selinux/enforce", "0");
        check(Toggle::On, Toggle::On, 40);
    }

    #[test]
    fn namespaces_have_the_words_and_flags_of_the_kernel() {
        let words: Vec<_> = NamespaceKind::ALL
            .iter()
            .map(|kind| kind.proc_name())
            .collect();
        assert_eq!(
            words,
            ["user", "cgroup", "ipc", "uts", "net", "pid", "time", "mnt"]
        );
        assert!(
            NamespaceKind::ALL.is_sorted(),
            "they are joined in the order of the enum"
        );
        let flags = NamespaceKind::ALL
            .iter()
            .fold(0, |all, kind| all | kind.clone_flag());
        assert_eq!(flags, 0x7e02_0080);
    }
}
