//! What a runtime implements to become a shim. Blocking calls only; no type of the wire.
//!
//! ```text
//!   create ──> Container ──start──> exec* signal* pause/resume* update* ──> delete
//!                  │
//!                  └── dropped without `delete` when the shim ends: the container lives on
//! ```
//!
//! Rules for implementers:
//! * Every call runs on a thread of its own, may block, and must end in bounded time. The shim
//!   answers its client by a deadline of its own and then undoes a late success.
//! * Calls to one container may overlap: `signal`, `pids`, `stats` and `take_oom` come while
//!   another call is still running. `create`, `start` and `delete` never overlap with their like.
//! * A pid is given to `sys::watch` before the process can run a container's program, so that its
//!   exit is never missed. When a call fails, it leaves no process behind.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a container uses; the numbers of containerd's metrics.
pub use cgroups::Stats;
/// Rows and columns of a terminal.
pub use stdio::WindowSize;

use crate::pod::SandboxRequest;
use crate::{Code, ShimError};

/// Result with [`ShimError`].
pub type Result<T> = std::result::Result<T, ShimError>;

/// Names a shim in `-v`, `-info` and its logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Runtime name as containerd knows it, e.g. `io.containerd.runlxc.v2`.
    pub name: &'static str,
    /// Version of the program.
    pub version: &'static str,
    /// Source revision, or empty.
    pub revision: &'static str,
}

/// Runtime options of a container: what is left of `containerd.runc.v1.Options` or the TOML body
/// of `runtimeoptions.v1.Options` once everything we cannot honour was refused by name.
/// `shim_cgroup` is dealt with by `start` and not seen here.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Where the runtime keeps its state instead of its default root; the namespace is a folder
    /// below it.
    pub root: Option<PathBuf>,
    /// Owner of the container's end of stdio pipes (also applied by shim-core).
    pub io_uid: u32,
    /// Group of the container's end of stdio pipes.
    pub io_gid: u32,
    /// `MS_MOVE` instead of `pivot_root`, for root file systems on ramfs.
    pub no_pivot_root: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Where lxcfs is mounted on the host instead of its usual place.
    #[serde(default)]
    pub lxcfs_root: Option<PathBuf>,
    /// A container that asks for lxcfs runs without it where there is none.
    #[serde(default)]
    pub lxcfs_optional: bool,
    /// Where operators' components lie on the host instead of their usual place.
    #[serde(default)]
    pub components_root: Option<PathBuf>,
    /// Those that every rich container has.
    #[serde(default)]
    pub components: Vec<String>,
    /// Where scripts lie that hooks may name, instead of their usual place.
    #[serde(default)]
    pub hooks_root: Option<PathBuf>,
    /// Whether a container runs without what its kernel lacks of no_new_privs and filters.
    #[serde(default)]
    pub hardening_optional: bool,
    /// Have systemd make the cgroup, as a scope.
    #[serde(default)]
    pub systemd_cgroup: bool,
}

/// A process's three descriptors, or the wish for a terminal.
#[derive(Debug)]
pub enum ProcessIo {
    /// The process's ends, to become its descriptors 0, 1 and 2.
    Streams {
        /// Read end.
        stdin: OwnedFd,
        /// Write end.
        stdout: OwnedFd,
        /// Write end.
        stderr: OwnedFd,
    },
    /// The runtime makes a pseudo terminal inside the container and returns its master.
    Terminal,
}

/// A container to make. Its rootfs mounts are already in place at `bundle/rootfs`.
#[derive(Debug)]
pub struct CreateRequest {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id, at most 76 characters, no slash.
    pub id: String,
    /// Absolute path of the bundle, which holds config.json.
    pub bundle: PathBuf,
    /// Descriptors of init.
    pub io: ProcessIo,
    /// Checked options.
    pub options: Options,
}

/// A container that was made: its init exists and waits for `start`.
#[derive(Debug)]
pub struct Created {
    /// Host pid of init, already under `sys::watch`.
    pub pid: i32,
    /// Master of init's terminal when [`ProcessIo::Terminal`] was asked for.
    pub terminal: Option<OwnedFd>,
}

/// A further process to run in a container.
#[derive(Debug)]
pub struct ExecRequest {
    /// The exec's id, unique in its container.
    pub id: String,
    /// The OCI `process` object as JSON.
    pub process_json: Vec<u8>,
    /// Its descriptors.
    pub io: ProcessIo,
}

/// An exec whose program runs.
#[derive(Debug)]
pub struct Started {
    /// Host pid, already under `sys::watch`; it may have ended by now.
    pub pid: i32,
    /// Master of its terminal when [`ProcessIo::Terminal`] was asked for.
    pub terminal: Option<OwnedFd>,
}

/// Whom a signal is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignalTarget {
    /// The container's init.
    Init,
    /// Every process of the container, frozen ones too when the signal is SIGKILL.
    All,
    /// One exec, by its id and the pid it was started with (not yet reaped).
    Exec {
        /// The exec's id.
        id: String,
        /// Its host pid.
        pid: i32,
    },
}

/// What is to change of a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateRequest {
    /// Limits: an OCI `linux.resources` object.
    pub resources_json: Vec<u8>,
    /// Words for the runtime.
    pub annotations: BTreeMap<String, String>,
}

/// A container to be written to files; the words of containerd's `CheckpointOptions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// Absolute path of the folder for the files.
    pub images: PathBuf,
    /// Where logs and the like go instead.
    pub work: Option<PathBuf>,
    /// Whether its processes end with it.
    pub exit: bool,
    /// Take open TCP connections along.
    pub open_tcp: bool,
    /// Allow unix sockets whose other end is outside.
    pub external_unix_sockets: bool,
    /// Allow terminals whose other end is outside.
    pub terminal: bool,
    /// Take file locks along.
    pub file_locks: bool,
    /// Namespaces that are made empty at a restore.
    pub empty_namespaces: Vec<String>,
    /// `soft`, `full`, `strict`, or empty.
    pub cgroups_mode: String,
    /// So long it may take.
    pub limit: Duration,
}

/// A container whose shim may be dead: everything `delete` has to go by.
#[derive(Debug, Clone, Copy)]
pub struct DeleteRequest<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// Its bundle; the directory may be empty or gone.
    pub bundle: &'a Path,
    /// The options it was created with; default ones when none were recorded.
    pub options: &'a Options,
}

/// Answer to `-info`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Features {
    /// runtime-spec's features document (features.md) as JSON.
    pub json: String,
    /// Further facts as annotations, sorted.
    pub annotations: Vec<(String, String)>,
}

/// Makes containers.
pub trait Runtime: Send + Sync + 'static {
    /// A container made by this runtime.
    type Container: Container;

    /// Names and versions.
    fn identity(&self) -> Identity;

    /// Makes a container whose init waits for [`Container::start`]. prestart, createRuntime and
    /// createContainer hooks have run when it returns.
    ///
    /// # Errors
    /// Everything done so far is undone, but for the rootfs mounts, which shim-core takes away.
    fn create(&self, request: CreateRequest) -> Result<(Self::Container, Created)>;

    /// Writes the config.json of the container that is the sandbox of a pod: one whose program does nothing, in a
    /// root that is empty but for `rootfs` in the bundle. It is made, started and removed as every container is.
    ///
    /// # Errors
    /// [`Code::Unimplemented`] unless the runtime has pods without sandbox containers; what a pod cannot have, by name.
    fn sandbox(&self, request: &SandboxRequest) -> Result<()> {
        Err(ShimError::new(
            Code::Unimplemented,
            format!(
                "sandbox {}: this runtime has sandbox containers only: set sandboxer = \"podsandbox\"",
                request.id
            ),
        ))
    }

    /// Kills and removes what is left of a container, from disk alone: processes, cgroups, mounts
    /// inside, the runtime's own state. Idempotent; nothing there is success.
    ///
    /// # Errors
    /// What could not be removed, by name. The rest was still removed.
    fn delete_from_disk(&self, request: DeleteRequest<'_>) -> Result<()>;

    /// What this runtime can do on this host.
    ///
    /// # Errors
    /// When the host cannot be asked.
    fn features(&self, options: &Options) -> Result<Features>;
}

/// A container that was made.
pub trait Container: Send + Sync + 'static {
    /// Lets init run the container's program: startContainer hooks, execve, poststart hooks.
    ///
    /// # Errors
    /// [`Code::FailedPrecondition`] when init is gone, [`Code::Internal`] with the program's
    /// errno. Init has ended or will at once.
    fn start(&self) -> Result<()>;

    /// Runs a further process; its program runs (execve was done) when this returns.
    ///
    /// # Errors
    /// As `start`; no process is left.
    fn exec(&self, request: ExecRequest) -> Result<Started>;

    /// Sends `signal` (a number, real-time ones too).
    ///
    /// # Errors
    /// [`Code::NotFound`] when the process has ended.
    fn signal(&self, target: SignalTarget, signal: i32) -> Result<()>;

    /// A process's terminal was given a size; the master that the runtime returned has it by now. Quick.
    /// Nothing is to be done where that master is of the container's own terminal.
    fn resized(&self, _target: SignalTarget, _size: WindowSize) {}

    /// Freezes all processes; returns when they are frozen.
    ///
    /// # Errors
    /// They are thawed again.
    fn pause(&self) -> Result<()>;

    /// Thaws all processes.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn resume(&self) -> Result<()>;

    /// Applies limits, and what annotations ask for.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for a bad value, by name.
    fn update(&self, request: &UpdateRequest) -> Result<()>;

    /// Host pids of all processes in the container.
    ///
    /// # Errors
    /// When they cannot be listed. A container without processes is an empty list.
    fn pids(&self) -> Result<Vec<i32>>;

    /// What the container uses.
    ///
    /// # Errors
    /// When the kernel's files cannot be read.
    fn stats(&self) -> Result<Stats>;

    /// A descriptor that polls readable when the kernel may have killed for memory, if the host
    /// can tell. Asked for once, after `create`.
    ///
    /// # Errors
    /// When it should exist but cannot be made; the container then runs without OOM events.
    fn oom_descriptor(&self) -> Result<Option<OwnedFd>>;

    /// Drains the descriptor and returns how many OOM kills were seen since the last call.
    /// Quick: called when the descriptor is readable, and once more after init has ended.
    ///
    /// # Errors
    /// When the files cannot be read (the cgroup is gone): no further events are expected.
    fn take_oom(&self) -> Result<u64>;

    /// Init has ended and was reaped: kills what else runs, when no pid namespace of the
    /// container's own did it; then does what the container has for its end, which may take its
    /// time. Idempotent.
    ///
    /// # Errors
    /// When processes could not be killed.
    fn init_exited(&self) -> Result<()>;

    /// Removes everything the runtime made for this container; processes that are left are killed,
    /// poststop hooks run. Idempotent, so that it can be tried again. What it needs it must find
    /// when a part is gone already.
    ///
    /// # Errors
    /// What could not be removed, by name.
    fn delete(&self) -> Result<()>;

    /// Writes the container to files.
    ///
    /// # Errors
    /// [`Code::Unimplemented`] unless the runtime has something to offer. The container runs on
    /// then.
    fn checkpoint(&self, request: &CheckpointRequest) -> Result<()> {
        Err(ShimError::new(
            Code::Unimplemented,
            format!(
                "checkpoint to {} is not implemented",
                request.images.display()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_an_older_shim_wrote_are_understood() {
        let options = Options {
            root: Some("/run/elsewhere".into()),
            ..Options::default()
        };
        let mut text = serde_json::to_value(&options).unwrap();
        let fields = text.as_object_mut().unwrap();
        for younger in [
            "lxcfs_root",
            "lxcfs_optional",
            "components_root",
            "components",
            "hooks_root",
            "hardening_optional",
            "systemd_cgroup",
        ] {
            assert!(fields.remove(younger).is_some(), "{younger}");
        }
        assert_eq!(serde_json::from_value::<Options>(text).unwrap(), options);
    }
}
