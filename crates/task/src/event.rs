//! What happens to a task, what the world is told about it, and in which order.

use std::time::SystemTime;

use crate::{Exit, ProcessName, WaiterId};

/// An outcome that the owner of a task reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The program of a process runs.
    Started {
        /// Which one.
        process: ProcessName,
        /// Its host pid.
        pid: i32,
    },
    /// A start has failed. An exec left no process; an init has ended or will at once, and
    /// [`Notice::Exited`] comes for it.
    StartFailed {
        /// Which one.
        process: ProcessName,
        /// When.
        at: SystemTime,
    },
    /// The container is frozen.
    Paused,
    /// It could not be frozen and runs.
    PauseFailed,
    /// The container is thawed.
    Resumed,
    /// It could not be thawed.
    ResumeFailed,
    /// A process was removed; with init, everything.
    Deleted {
        /// Which one.
        process: ProcessName,
        /// When.
        at: SystemTime,
    },
    /// Not all could be removed. It can be asked for again.
    DeleteFailed {
        /// Which one.
        process: ProcessName,
    },
    /// A process has ended and was reaped.
    Exited {
        /// Its host pid.
        pid: i32,
        /// How.
        exit: Exit,
    },
    /// Execs did not end in time after init was: its end is told all the same.
    RestOverdue,
}

/// What containerd's event stream is told. Each is told once, and per process in this order:
/// created, started, exec added, exec started, exited, deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `TaskCreate`.
    Created {
        /// Init's host pid.
        pid: i32,
    },
    /// `TaskStart`.
    Started {
        /// Init's host pid.
        pid: i32,
    },
    /// `TaskExecAdded`.
    ExecAdded {
        /// Which one.
        id: crate::ExecId,
    },
    /// `TaskExecStarted`.
    ExecStarted {
        /// Which one.
        id: crate::ExecId,
        /// Its host pid.
        pid: i32,
    },
    /// `TaskPaused`.
    Paused,
    /// `TaskResumed`.
    Resumed,
    /// `TaskExit`; init's comes after those of all execs.
    Exited {
        /// Which one.
        process: ProcessName,
        /// Its host pid.
        pid: i32,
        /// How.
        exit: Exit,
    },
    /// `TaskDelete`, for init alone (as containerd's own shim); the last event of a task.
    Deleted {
        /// Init's host pid.
        pid: i32,
        /// How init ended.
        exit: Exit,
    },
}

/// What the owner of a task does now, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell containerd.
    Publish(Event),
    /// Answer a client that waits.
    Answer {
        /// Which one.
        waiter: WaiterId,
        /// With this.
        exit: Exit,
    },
    /// Init has ended: kill what else runs in the container.
    StopRest,
}
