//! Who answers for system calls with the action SCMP_ACT_NOTIFY gets the filter's listener
//! (config-linux.md, Seccomp: The Container Process State). Must not answer itself.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bundle::{Plan, SeccompListener, Status};
use launch::control::{FromStub, ToStub};
use serde_json::{Value, json};

use crate::channel::Channel;
use crate::container::Container;
use crate::{Error, Result, connect};

/// How long whoever listens on the socket may take to have room for us.
const LIMIT: Duration = Duration::from_secs(10);

/// The name of the descriptor that the specification has.
const FD_NAME: &str = "seccompFd";

/// A process that is about to become a program of a container.
#[derive(Debug)]
pub(crate) struct Starting {
    pid: i32,
    listener: Option<Listener>,
}

/// Where the listener of its filter belongs.
#[derive(Debug)]
pub(crate) struct Listener {
    to: SeccompListener,
    /// The container's state as the specification has it.
    state: String,
}

impl Starting {
    pub(crate) fn of(container: &Container, status: Status, pid: i32) -> Self {
        let to = container.journal().seccomp_listener.clone();
        let state = || container.state_json(status);
        Self {
            pid,
            listener: to.map(|to| Listener { to, state: state() }),
        }
    }

    /// Waits until the stub has become the program, and passes its filter's listener on before.
    /// Gives whether that is what happened: false for any other word.
    ///
    /// # Errors
    /// As [`Channel::receive`], or that nobody takes the listener.
    pub(crate) fn await_program(&self, channel: &Channel) -> Result<bool> {
        loop {
            let Some(mut word) = channel.receive()? else {
                return Ok(true);
            };
            match (word.message, word.fds.pop(), &self.listener) {
                (FromStub::Listener, Some(fd), Some(listener)) => {
                    listener.pass_on(&fd, self.pid)?;
                    channel.send(&ToStub::GoOn)?;
                }
                _ => return Ok(false),
            }
        }
    }
}

impl Listener {
    /// Of the filter of a container's pid 1, while that is made.
    pub(crate) fn of(plan: &Plan, pid: i32) -> Option<Self> {
        Some(Self {
            to: plan.seccomp_listener.clone()?,
            state: plan.state(Status::Creating, pid),
        })
    }

    /// Gives whoever listens the descriptor, with the state of the container and its process.
    ///
    /// # Errors
    /// That nobody takes it.
    pub(crate) fn pass_on(&self, fd: &OwnedFd, pid: i32) -> Result<()> {
        let path = &self.to.path;
        let stream = connect::within(path, LIMIT)
            .map_err(Error::on("failed to connect with seccomp agent", path))?;
        let state: Value = serde_json::from_str(&self.state)
            .map_err(|error| Error::io("write the container's state")(error.into()))?;
        let mut about = json!({
            "ociVersion": bundle::state::OCI_VERSION,
            "fds": [FD_NAME],
            "pid": pid,
            "state": state,
        });
        if let Some(metadata) = &self.to.metadata {
            about["metadata"] = json!(metadata);
        }
        let failed = || Error::on("send the seccomp listener to", path);
        let about = about.to_string();
        let sent = sys::send_with_fds(&stream, about.as_bytes(), &[fd.as_fd()]).map_err(failed())?;
        if sent < about.len() {
            // It has not read in time what was before.
            return Err(failed()(ErrorKind::TimedOut.into()));
        }
        Ok(())
    }
}
