//! What a container's actor is asked, and how it answers. Decides nothing.

use std::time::Duration;

use task::{Exit, ProcessName, Scope};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::request::{Deleted, Exec, ProcessInfo, ProcessState};
use crate::runtime::{CheckpointRequest, Stats, UpdateRequest};
use crate::{Code, ShimError};

/// A question to an actor; in the order of the Task API.
#[derive(Debug)]
pub(crate) enum Command {
    State {
        process: ProcessName,
        reply: Reply<ProcessState>,
    },
    Start {
        process: ProcessName,
        reply: Reply<i32>,
    },
    Exec {
        exec: Exec,
        reply: Reply<()>,
    },
    Delete {
        process: ProcessName,
        reply: Reply<Deleted>,
    },
    Kill {
        process: ProcessName,
        signal: i32,
        scope: Scope,
        reply: Reply<()>,
    },
    Wait {
        process: ProcessName,
        reply: Reply<Exit>,
    },
    Pause {
        reply: Reply<()>,
    },
    Resume {
        reply: Reply<()>,
    },
    Resize {
        process: ProcessName,
        rows: u16,
        columns: u16,
        reply: Reply<()>,
    },
    CloseStdin {
        process: ProcessName,
        reply: Reply<()>,
    },
    Container(ContainerCommand),
}

/// What is about the whole container and changes nothing of its life.
#[derive(Debug)]
pub(crate) enum ContainerCommand {
    Update {
        request: UpdateRequest,
        reply: Reply<()>,
    },
    Checkpoint {
        request: CheckpointRequest,
        reply: Reply<()>,
    },
    Pids {
        reply: Reply<Vec<ProcessInfo>>,
    },
    Stats {
        reply: Reply<Stats>,
    },
}

/// Where an answer goes, and until when somebody waits for it.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    sender: oneshot::Sender<Result<T, ShimError>>,
    deadline: Option<Instant>,
}

impl<T> Reply<T> {
    /// Answers. A client that has gone needs no answer.
    pub(crate) fn send(self, result: Result<T, ShimError>) {
        drop(self.sender.send(result));
    }

    /// Whether nobody waits for the answer.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// When the client stops waiting.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// For calls that run hooks, which the specification gives no limit, and make what there is of a container.
pub(crate) const HOOKS: Duration = Duration::from_secs(300);

/// Asks an actor and waits for the answer; with a limit, not longer than that.
pub(crate) async fn ask<T>(
    mailbox: &mpsc::UnboundedSender<Command>,
    limit: Option<Duration>,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, ShimError> {
    let (sender, answer) = oneshot::channel();
    let deadline = limit.map(|limit| Instant::now() + limit);
    if mailbox.send(command(Reply { sender, deadline })).is_err() {
        return Err(gone());
    }
    let answer = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, answer)
            .await
            .map_err(|_elapsed| {
                let seconds = limit.unwrap_or_default().as_secs();
                ShimError::new(
                    Code::DeadlineExceeded,
                    format!("not done within {seconds} s"),
                )
            })?,
        None => answer.await,
    };
    // The actor drops what it was asked when the container is deleted in between.
    answer.unwrap_or_else(|_dropped| Err(gone()))
}

fn gone() -> ShimError {
    ShimError::new(Code::NotFound, "container was deleted")
}

/// The last answers of an actor, to be given when the container's id is free again.
#[derive(Debug)]
pub(crate) struct Last(pub(crate) Vec<(Reply<Deleted>, Deleted)>);

impl Last {
    pub(crate) fn answer(self) {
        for (reply, deleted) in self.0 {
            reply.send(Ok(deleted));
        }
    }
}
