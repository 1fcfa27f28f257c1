//! Containers that containerd has forgotten: it was killed while one was being made, cleaned up
//! before the shim could tell of it, and will never ask for its deletion. Must not be used for one
//! that runs: its work is worth more than a tidy host.

use std::time::Duration;

use task::{ProcessName, Status};
use tokio::sync::mpsc;

use crate::ShimError;
use crate::command::{Command, ask};

/// A deletion that lasts longer goes on, and is asked for again.
const LIMIT: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Debug)]
pub(crate) struct Forgotten {
    id: String,
    mailbox: mpsc::UnboundedSender<Command>,
}

enum Outcome {
    Deleted,
    Runs,
}

impl Forgotten {
    pub(crate) fn new(id: &str, mailbox: &mpsc::UnboundedSender<Command>) -> Self {
        Self {
            id: id.to_owned(),
            mailbox: mailbox.clone(),
        }
    }

    /// Deletes it unless it runs.
    async fn give_up(&self) {
        let id = &self.id;
        match self.delete_unless_running().await {
            Ok(Outcome::Deleted) => tracing::warn!(id, "its bundle is gone: it was deleted"),
            Ok(Outcome::Runs) => tracing::debug!(id, "its bundle is gone, but it runs"),
            Err(error) => tracing::warn!(id, %error, "its bundle is gone, and it was not deleted"),
        }
    }

    async fn delete_unless_running(&self) -> Result<Outcome, ShimError> {
        let process = ProcessName::Init;
        let state = ask(&self.mailbox, Some(LIMIT), |reply| Command::State {
            process: process.clone(),
            reply,
        });
        match state.await?.status {
            Status::Running | Status::Pausing | Status::Paused => return Ok(Outcome::Runs),
            Status::Created | Status::Stopped => {}
        }
        let delete = |reply| Command::Delete { process, reply };
        ask(&self.mailbox, Some(LIMIT), delete).await?;
        Ok(Outcome::Deleted)
    }
}

/// Deletes those that do not run, one after the other.
pub(crate) async fn give_up(containers: Vec<Forgotten>) {
    for container in containers {
        container.give_up().await;
    }
}
