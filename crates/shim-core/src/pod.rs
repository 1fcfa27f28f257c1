//! A pod without a sandbox container, as containerd's sandbox service asks for it: what a runtime makes the
//! config.json of its sandbox from.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A sandbox to make, of which the bundle has no config.json yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRequest {
    /// containerd's namespace.
    pub namespace: String,
    /// The sandbox's id.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// The network namespace that CNI has set up; none: the host's.
    pub network: Option<PathBuf>,
    /// What CRI was asked for.
    pub pod: Pod,
}

/// CRI's `PodSandboxConfig`, as far as it is for a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// Empty: none.
    pub hostname: String,
    /// Empty in all parts: the host's.
    pub dns: Dns,
    /// All that the pod has, whatever the runtime's `pod_annotations` in containerd's configuration say.
    pub annotations: BTreeMap<String, String>,
    /// Path of the cgroup above the pod's; empty: none was said.
    pub cgroup_parent: String,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Who shares the processes' view.
    pub pid: NamespaceMode,
    /// Who shares IPC.
    pub ipc: NamespaceMode,
    /// Who shares the network.
    pub network: NamespaceMode,
    /// Whether it asks for a user namespace.
    pub has_user_namespace: bool,
    /// What its containers have together, in the kubelet's words.
    pub resources: PodResources,
}

/// Lines of resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// Addresses.
    pub servers: Vec<String>,
    /// Domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// Whose namespace it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamespaceMode {
    /// The pod's.
    #[default]
    Pod,
    /// Each container's own.
    Container,
    /// The host's.
    Node,
    /// That of another container.
    Target,
}

/// Limits of a pod; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodResources {
    /// In microseconds.
    pub cpu_period: i64,
    /// In microseconds of each period.
    pub cpu_quota: i64,
    /// Relative weight.
    pub cpu_shares: i64,
    /// In bytes.
    pub memory_bytes: i64,
}
