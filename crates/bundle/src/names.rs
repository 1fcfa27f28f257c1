//! Names of files: one place, so that what one process writes another finds.
//!
//! A bundle is `/run/containerd/<shim>/<namespace>/<id>` (made by containerd) or any directory (the
//! CLI); the state directory is `ROOT/<id>`, ours alone.

/// The runtime specification's configuration, in the bundle.
pub const CONFIG: &str = "config.json";
/// The root file system that containerd names in config.json, in the bundle.
pub const ROOTFS: &str = "rootfs";
/// The host pid of the container's init as decimal text, in the bundle (containerd's name).
pub const INIT_PID: &str = "init.pid";
/// The shim's socket address, in the bundle (containerd's name).
pub const ADDRESS: &str = "address";
/// The pid of the shim, in the bundle (containerd's name).
pub const SHIM_PID: &str = "shim.pid";
/// The fifo the shim logs to, in the bundle (containerd's name).
pub const SHIM_LOG: &str = "log";
/// The runtime options a container was created with, in the bundle (containerd's name).
pub const OPTIONS: &str = "options.json";
/// How the container's init ended, in the bundle (see [`crate::ExitRecord`]).
pub const EXIT: &str = "exit.json";
/// The journal of host mutations, in the state directory.
pub const JOURNAL: &str = "state.json";
/// The listening unix socket that `start` connects to, in the state directory.
pub const START_SOCKET: &str = "start.sock";
/// The listening unix socket at which pid 1 starts execs where the kernel has no setns(2), in the state
/// directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The container's system-call filter, for execs, in the state directory.
pub const FILTER: &str = "seccomp.json";
/// The plan of a container with hooks of its own, for them, in the state directory.
pub const PLAN: &str = "plan.json";
/// The process of a prestart hook in the container while it runs, in the state directory.
pub const PRESTART_RUNS: &str = "prestart.json";
/// There while a poststop hook in the container has yet to run, in the state directory.
pub const POSTSTOP_DUE: &str = "poststop.due";
/// The state directory of the container that such a hook runs in, in the state directory.
pub const POSTSTOP: &str = "poststop";
/// A network with limits of ours that may outlive the container, in the state directory.
pub const TRAFFIC: &str = "traffic.json";
/// The generated LXC configuration, in the state directory.
pub const LXC_CONFIG: &str = "lxc.conf";
/// What LXC said, in the state directory.
pub const LXC_LOG: &str = "lxc.log";
