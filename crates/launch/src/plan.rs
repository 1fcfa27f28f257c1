//! Closed, validated values: everything a process inside the namespaces must do, and no more.
//!
//! Paths that the image can influence are strings relative to the container's root and are
//! resolved inside it; paths on the host are absolute.

use mounts::Mount;
use serde::{Deserialize, Serialize};

/// All that pid 1 of a container does before it becomes the container's program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitPlan {
    /// The root file system.
    pub root: Root,
    /// Mounts in the order of config.json, sources on the host (runtime-spec config.md, Mounts).
    pub mounts: Vec<PlannedMount>,
    /// Device nodes to make below `/dev` beside the default ones (config-linux.md, Devices).
    pub devices: Vec<DeviceNode>,
    /// Paths hidden by `/dev/null` or an empty read-only tmpfs.
    pub masked_paths: Vec<String>,
    /// Paths bound onto themselves read-only.
    pub readonly_paths: Vec<String>,
    /// Kernel parameters by their dotted name; written below `/proc/sys`.
    pub sysctl: Vec<(String, String)>,
    /// Host name for the container's own UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name for the container's own UTS namespace.
    pub domainname: Option<String>,
    /// Whether there is a cgroup namespace other than the host's (kernel 4.6): the one that is given,
    /// or a new one, once the host has moved us.
    pub cgroup_namespace: Toggle,
    /// SELinux label of files in the mounts that are made for the container (`linux.mountLabel`).
    pub mount_label: Option<String>,
    /// Hooks that run inside the namespaces before pivot_root (createContainer).
    pub create_container_hooks: Vec<Hook>,
    /// Hooks that run in the container just before its program (startContainer), with the rights
    /// and under the filter of the program, since they may be programs of the image.
    pub start_container_hooks: Vec<Hook>,
    /// OCI state for hooks, JSON, status `creating`; the stub replaces the number of its `pid` by
    /// the pid that the container sees (runtime-spec config.md, POSIX-platform Hooks).
    pub state_creating: String,
    /// OCI state for hooks, JSON, status `created`; its `pid` is replaced as well.
    pub state_created: String,
    /// Who is pid 1 once the program runs.
    pub pid_one: PidOne,
    /// The program.
    pub process: Process,
}

/// Who is pid 1 of a container whose program runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidOne {
    /// The program, which has taken the stub's place.
    #[default]
    Program,
    /// The stub: it stays, and the program is its child.
    Stub {
        /// Signals that the program gets as other ones.
        rewrites: Vec<Rewrite>,
        /// What runs beside the program; none: nothing.
        #[serde(default)]
        services: Option<Box<Services>>,
        /// Whether the program is started again when it has ended.
        #[serde(default)]
        restart: Restart,
    },
    /// The image's own systemd, of which the program is a unit.
    Systemd(ImageInit),
    /// The image's own `/sbin/init`, of which the program is a job.
    SbinInit(ImageInit),
}

impl PidOne {
    /// The stub, which does no more than to stay.
    #[must_use]
    pub fn stub() -> Self {
        Self::Stub {
            rewrites: Vec::new(),
            services: None,
            restart: Restart::Never,
        }
    }
}

/// What is asked of an image's own init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInit {
    /// The container's id.
    pub id: String,
    /// The program's user by the image's name of it; none: the one of [`Process`].
    pub user: Option<String>,
    /// What to start beside the program: units with their suffix, or names of scripts.
    pub services: Vec<String>,
    /// Commands of the operator's.
    #[serde(default)]
    pub components: Vec<Service>,
    /// Where the init itself says that it has started all, as sd_notify(3) has it.
    #[serde(default)]
    pub notify_socket: Option<String>,
    /// Whether the program is started again when it has ended.
    #[serde(default)]
    pub restart: Restart,
    /// What asks the init to end all in order (kill(2)); none: what systemd or sysvinit knows.
    #[serde(default)]
    pub stop_signal: Option<i32>,
}

/// Whether a program is started again when it has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Its end is the container's.
    #[default]
    Never,
    /// Unless its code was 0.
    OnFailure,
    /// However it ended.
    Always,
}

/// What runs beside a program whose parent is the stub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// In the order of their start.
    pub list: Vec<Service>,
    /// What they may, where they run and in which environment; its program is not looked at.
    pub process: Process,
}

impl Services {
    /// Seconds that each may take until it is ready, and a script to stop its service: systemd's own
    /// limit for a unit.
    pub const LIMIT_S: u8 = 90;

    /// Seconds that all of them may take until they are ready, one after the other.
    #[must_use]
    pub fn limit_s(&self) -> u64 {
        let awaited = self.list.iter().filter(|it| it.when == When::Before);
        awaited.count() as u64 * u64::from(Self::LIMIT_S)
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ServiceKind,
    /// Who it runs as, by the image's name; none: root of the container.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether the program waits for it.
    #[serde(default)]
    pub when: When,
}

/// On which side of the start of a program something beside it is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// Before it, until it is ready.
    #[default]
    Before,
    /// After it.
    After,
}

/// What a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    /// A script of the image, `/etc/init.d/NAME`, that starts and stops it.
    Script,
    /// A program that runs as long as the service does.
    Command {
        /// argv; never empty.
        args: Vec<String>,
        /// When it is ready.
        ready: Ready,
    },
}

/// When a program that is a service is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ready {
    /// As soon as it runs.
    Started,
    /// When there is a file at this absolute path.
    File(String),
    /// When it says so (sd_notify(3)).
    Notified,
    /// When somebody listens at this port of TCP.
    Port(u16),
}

/// A signal that the program gets as another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// Its number.
    pub from: i32,
    /// The number of the other one; none: the program does not get it at all.
    pub to: Option<i32>,
}

/// All that a process does that joins a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// Namespaces to join, in the order in which they must be joined.
    pub namespaces: Vec<JoinNamespace>,
    /// The program.
    pub process: Process,
    /// The root directory to enter then, by its path on the host, in a container whose mount namespace
    /// has another one. Last, so that a pid 1 of an older version, which knows none, reads the rest.
    pub root: Option<String>,
}

/// Yes or no, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Toggle {
    /// Do it.
    On,
    /// Leave it.
    Off,
}

/// The root file system of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Absolute path on the host.
    pub path: String,
    /// Remount it read-only at the end.
    pub readonly: Toggle,
    /// `linux.rootfsPropagation`; mount(2) flags, 0 for the default (slave).
    pub propagation: u64,
    /// Enter it by pivot_root(2), or by MS_MOVE and chroot(2) (no_pivot_root of runc's options).
    pub entry: RootEntry,
}

/// How the root file system is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootEntry {
    /// pivot_root(2).
    Pivot,
    /// MS_MOVE over `/` and chroot(2): for a host whose root is a ramfs.
    MoveChroot,
    /// chroot(2) alone: the mount namespace belongs to others, too.
    Chroot,
}

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlannedMount {
    /// A mount as it stands: bind, tmpfs, proc, sysfs, mqueue, devpts, ...
    Plain(Mount),
    /// A mount of type `cgroup`: on version 2 (or in a cgroup namespace) the hierarchy itself,
    /// else a tmpfs with one bind per version 1 hierarchy.
    Cgroup {
        /// Target and flags; the source is not used.
        mount: Mount,
        /// What to show there.
        view: CgroupView,
    },
}

/// What a container sees as /sys/fs/cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupView {
    /// Version 2 only: mount type cgroup2 (or bind of `own` without a cgroup namespace).
    Unified {
        /// Absolute host path of the container's cgroup.
        own: String,
    },
    /// Version 1: a tmpfs, in it one directory per hierarchy.
    Legacy {
        /// The hierarchies, e.g. name `cpu,cpuacct`, own `/sys/fs/cgroup/cpu,cpuacct/x/ID`.
        hierarchies: Vec<LegacyHierarchy>,
    },
}

/// One version 1 hierarchy (or the unified one beside them).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyHierarchy {
    /// Directory name under the tmpfs.
    pub name: String,
    /// Mount options that name the hierarchy, e.g. `cpu,cpuacct` or `none,name=systemd`.
    pub options: String,
    /// Absolute host path of the container's cgroup in it.
    pub own: String,
    /// Other names of the hierarchy to make as symbolic links, e.g. `cpu` and `cpuacct`.
    pub links: Vec<String>,
}

/// A node to make with mknod(2), or to bind from the host in a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path inside the container.
    pub path: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Major number; 0 for a fifo.
    pub major: u64,
    /// Minor number; 0 for a fifo.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside the container.
    pub uid: u32,
    /// Group inside the container.
    pub gid: u32,
}

/// Type of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// `c` or `u`.
    Char,
    /// `b`.
    Block,
    /// `p`.
    Fifo,
}

/// A program run at a point of the lifecycle (config.md, POSIX-platform Hooks).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: String,
    /// argv including argv\[0\]; empty: the path alone.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<String>,
    /// Seconds it may run; none: no limit.
    pub timeout_s: Option<u32>,
}

/// A namespace to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinNamespace {
    /// The CLONE_NEW* flag.
    pub flag: i32,
    /// Path of the namespace file on the host, e.g. `/proc/PID/ns/net`.
    pub path: String,
}

/// A program and the rights it runs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// argv; never empty.
    pub args: Vec<String>,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// Working directory inside the container, absolute; made when missing, but not by an exec.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// umask(2); none: 022.
    pub umask: Option<u32>,
    /// The five capability sets; none: keep what the process has.
    pub capabilities: Option<CapabilitySets>,
    /// PR_SET_NO_NEW_PRIVS (kernel 3.5).
    pub no_new_privs: Toggle,
    /// setrlimit(2): resource number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Compiled system-call filter (kernel 3.5).
    pub seccomp: Option<SeccompFilter>,
    /// A terminal of its own, and its first size.
    pub terminal: Option<TerminalSize>,
    /// How many descriptors from 3 up the program keeps (LISTEN_FDS protocol).
    pub preserve_fds: u32,
    /// Whether to make a session keyring of its own (runc's no_new_keyring is Off).
    pub new_keyring: Toggle,
    /// What security modules know it by.
    pub labels: Labels,
    /// CPU time, disk time, memory nodes, execution domain.
    pub scheduling: Scheduling,
}

/// How the kernel treats a program besides its rights; what is none or empty stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// sched_setattr(2) (kernel 3.14; what older ones can, they are asked for).
    pub cpu: Option<CpuScheduler>,
    /// ioprio_set(2): class and level in one number, as linux/ioprio.h has them.
    pub io: Option<u32>,
    /// Numbers of CPUs for a process that joins, until it is in its cgroups.
    pub cpus_initial: Vec<u32>,
    /// The same from then on.
    pub cpus: Vec<u32>,
    /// set_mempolicy(2).
    pub memory: Option<MemoryPolicy>,
    /// personality(2).
    pub personality: Option<u32>,
}

/// How CPU time is given to a program, in the numbers of linux/sched.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuScheduler {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// Of SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Of SCHED_DEADLINE.
    pub runtime_ns: u64,
    /// Of SCHED_DEADLINE.
    pub deadline_ns: u64,
    /// Of SCHED_DEADLINE.
    pub period_ns: u64,
}

/// Which memory nodes a program gets its memory from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// MPOL_* and MPOL_F_* of linux/mempolicy.h.
    pub mode: u32,
    /// Numbers of nodes.
    pub nodes: Vec<u32>,
}

/// What the security modules of the kernel make of a program at its execve(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// AppArmor profile to change to; none: what AppArmor's own rules say.
    pub apparmor: Option<String>,
    /// SELinux label, also of the session keyring that is made for it; none: what the policy says.
    pub selinux: Option<String>,
}

/// Bit masks over capability numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Ambient set (kernel 4.3).
    pub ambient: u64,
}

/// A BPF program for seccomp(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// Instructions as in struct sock_filter: code, jt, jf, k packed by `seccomp::Instruction`.
    pub program: Vec<u64>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
}

/// Size of a terminal in characters; zeros leave the kernel's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}
