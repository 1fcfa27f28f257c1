//! The life of one process and what may be asked of it when. Knows no ids and no other process.

use std::time::SystemTime;

use crate::{Kind, Refusal};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..=255, or 128 + signal.
    pub code: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// Whether a process is the container's first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its end is the container's.
    Init,
    /// A further process.
    Exec,
}

/// A process's place in its life; the diagram is in the crate's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waits for [`Action::Start`]. An init exists as a process, an exec does not.
    Created,
    /// A start is under way.
    Starting,
    /// Its program runs.
    Running,
    /// The container is being frozen. Init only, as the next two.
    Pausing,
    /// The container is frozen.
    Paused,
    /// The container is being thawed.
    Resuming,
    /// Init has ended, but execs have not: containerd is told of init's end last.
    Stopping(Exit),
    /// It has ended and that was told.
    Stopped(Exit),
    /// It is being removed; without an exit it was never started.
    Deleting(Option<Exit>),
    /// It is gone.
    Deleted,
}

/// What clients can ask of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run its program.
    Start,
    /// Add a process to its container.
    Exec,
    /// Send it a signal.
    Kill,
    /// Freeze its container.
    Pause,
    /// Thaw its container.
    Resume,
    /// Tell its terminal a size.
    Resize,
    /// Close its standard input.
    CloseIo,
    /// Change its container's limits.
    Update,
    /// Dump its container.
    Checkpoint,
    /// Remove it.
    Delete,
    /// Tell when it ends.
    Wait,
    /// Tell its state.
    State,
    /// List its container's processes.
    Pids,
    /// Tell what its container uses.
    Stats,
}

/// A state in the words of containerd's `task.Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `CREATED`.
    Created,
    /// `RUNNING`.
    Running,
    /// `PAUSING`.
    Pausing,
    /// `PAUSED`.
    Paused,
    /// `STOPPED`.
    Stopped,
}

impl State {
    /// What clients are told.
    pub fn status(self) -> Status {
        match self {
            Self::Created | Self::Starting | Self::Deleting(None) => Status::Created,
            Self::Running | Self::Stopping(_) => Status::Running,
            Self::Pausing => Status::Pausing,
            Self::Paused | Self::Resuming => Status::Paused,
            Self::Stopped(_) | Self::Deleting(Some(_)) | Self::Deleted => Status::Stopped,
        }
    }

    /// How it ended, once that was told.
    pub fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) | Self::Deleting(Some(exit)) => Some(exit),
            _ => None,
        }
    }

    /// The state in the words of refusals.
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping(_) | Self::Stopped(_) => "stopped",
            Self::Deleting(_) | Self::Deleted => "deleted",
        }
    }
}

/// The state that follows when `action` is asked for, or why it is refused.
///
/// [`State::Starting`], [`State::Pausing`], [`State::Resuming`] and [`State::Deleting`] are work
/// under way: their outcome decides what comes next.
///
/// # Errors
/// [`Kind::NotFound`] when the process has ended or is gone, else [`Kind::FailedPrecondition`].
pub fn accept(role: Role, state: State, action: Action) -> Result<State, Refusal> {
    if state == State::Deleted {
        return Err(refuse_gone(action));
    }
    match action {
        Action::Start => start(state),
        Action::Exec => exec(state),
        Action::Kill => kill(role, state),
        Action::Pause | Action::Resume => freeze(state, action),
        Action::Resize => resize(state),
        Action::Update => update(state),
        Action::Checkpoint => checkpoint(state),
        Action::Delete => delete(state),
        // containerd 2.x asks a shim for Pids when it starts and deletes one that does not answer,
        // stopped task or not.
        Action::CloseIo | Action::Wait | Action::State | Action::Pids | Action::Stats => Ok(state),
    }
}

fn start(state: State) -> Result<State, Refusal> {
    match state {
        State::Created => Ok(State::Starting),
        _ => refuse(format!("cannot start a {} process", state.word())),
    }
}

fn exec(state: State) -> Result<State, Refusal> {
    match state {
        State::Running => Ok(state),
        _ => refuse(format!("cannot exec in a {} state", state.word())),
    }
}

fn kill(role: Role, state: State) -> Result<State, Refusal> {
    match (role, state) {
        // Its pid is not known before its start has succeeded.
        (Role::Exec, State::Created | State::Starting | State::Deleting(None)) => {
            refuse("process not created")
        }
        (_, State::Stopping(_) | State::Stopped(_) | State::Deleting(_)) => {
            Err(Refusal::new(Kind::NotFound, "process already finished"))
        }
        _ => Ok(state),
    }
}

fn freeze(state: State, action: Action) -> Result<State, Refusal> {
    let (verb, next) = match (action, state) {
        (Action::Pause, State::Running) => return Ok(State::Pausing),
        (Action::Resume, State::Paused) => return Ok(State::Resuming),
        (Action::Pause, _) => ("pause", "container"),
        (_, State::Running) => ("resume", "process"),
        _ => ("resume", "container"),
    };
    match state {
        State::Created | State::Starting => {
            refuse(format!("cannot {verb} task in {} state", state.word()))
        }
        _ => refuse(format!("cannot {verb} a {} {next}", state.word())),
    }
}

fn resize(state: State) -> Result<State, Refusal> {
    match state {
        State::Stopping(_) | State::Stopped(_) | State::Deleting(_) => {
            refuse(format!("cannot resize a {} container", state.word()))
        }
        _ => Ok(state),
    }
}

fn update(state: State) -> Result<State, Refusal> {
    match state {
        State::Stopping(_) | State::Stopped(_) | State::Deleting(_) => {
            refuse(format!("cannot update a {} container", state.word()))
        }
        _ => Ok(state),
    }
}

fn checkpoint(state: State) -> Result<State, Refusal> {
    match state {
        State::Running | State::Paused => Ok(state),
        State::Created | State::Starting => refuse(format!(
            "cannot checkpoint a task in {} state",
            state.word()
        )),
        _ => refuse(format!("cannot checkpoint a {} container", state.word())),
    }
}

fn delete(state: State) -> Result<State, Refusal> {
    match state {
        State::Created => Ok(State::Deleting(None)),
        State::Stopped(exit) => Ok(State::Deleting(Some(exit))),
        State::Deleting(_) => refuse("process is being deleted"),
        // As long as the exit is not told, clients are told that it runs.
        State::Stopping(_) => refuse("cannot delete a running process"),
        _ => refuse(format!("cannot delete a {} process", state.word())),
    }
}

fn refuse(message: impl Into<String>) -> Result<State, Refusal> {
    Err(Refusal::new(Kind::FailedPrecondition, message))
}

fn refuse_gone(action: Action) -> Refusal {
    let message = match action {
        Action::Kill => "cannot kill a deleted process",
        Action::Delete => "cannot delete a deleted process",
        _ => "container not created",
    };
    Refusal::new(Kind::NotFound, message)
}
