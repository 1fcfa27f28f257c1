//! What clients ask and are told, in our own words. `convert` makes these from the wire and the
//! wire from these; nothing here is sent or received.

use std::path::PathBuf;

use task::{ExecId, Exit, Status};

use crate::Options;

/// Where a process reads and writes, as the client names it; empty is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// A mount the snapshotter wants at the container's root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootfsMount {
    pub(crate) fstype: String,
    pub(crate) source: String,
    /// Below the rootfs; empty for the rootfs itself.
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
}

/// A container to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Create {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<RootfsMount>,
    pub(crate) stdio: Stdio,
    pub(crate) options: Options,
}

/// A process to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exec {
    pub(crate) id: ExecId,
    pub(crate) stdio: Stdio,
    /// The OCI process, its `terminal` set as the client wants it.
    pub(crate) process_json: Vec<u8>,
}

/// What a deleted process leaves behind; pid 0 when it was never started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deleted {
    pub(crate) pid: i32,
    pub(crate) exit: Option<Exit>,
}

/// Everything `State` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessState {
    /// The container's id, or the exec's.
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pid: i32,
    pub(crate) status: Status,
    pub(crate) stdio: Stdio,
    pub(crate) exit: Option<Exit>,
}

/// A process of a container; execs are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessInfo {
    pub(crate) pid: i32,
    pub(crate) exec_id: Option<ExecId>,
}

/// What happened, for containerd's event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Create {
        bundle: PathBuf,
        rootfs: Vec<RootfsMount>,
        stdio: Stdio,
        pid: i32,
    },
    Start {
        pid: i32,
    },
    ExecAdded {
        exec_id: ExecId,
    },
    ExecStarted {
        exec_id: ExecId,
        pid: i32,
    },
    /// `id` is the exec's, or the container's for init.
    Exit {
        id: String,
        pid: i32,
        exit: Exit,
    },
    Delete {
        pid: i32,
        exit: Exit,
    },
    Oom,
    Paused,
    Resumed,
    Checkpointed {
        path: String,
    },
}
