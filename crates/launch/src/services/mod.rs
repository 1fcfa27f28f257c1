//! Services beside the program of a container whose pid 1 is the stub.
//!
//! ```text
//!   pid 1 -- fork --> supervisor: root of the container, as its hooks are
//!     |                  | <-- Start ---- the program's process, which was told to start
//!     |                  | each service in its order, until it is ready
//!     |                  | --- Ready ---> the program's process goes on to execve
//!     |                  | one that ends is started again, later each time
//!     | the program has ended
//!     | --- TERM ------> | all are stopped, the last one first
//!     | <-- ends --------|
//!   ends with the program's status
//! ```
//! The supervisor may no more than a program of the container's root; pid 1 gains no right by it.

mod process;
mod readiness;
mod supervisor;

use std::os::unix::net::UnixStream;

use sys::Pid;
use sys::process::Fork;

use crate::control::{self, Failure, FromStub, ToStub};
use crate::error::{Error, Result, host};
use crate::plan::Services;

pub(crate) use process::{STEADY, WAIT_MAX, WAIT_MIN};
pub use readiness::says_ready;
pub(crate) use supervisor::Supervisor;

/// Where scripts lie (LSB 3.1, System Initialization).
pub(crate) const SCRIPTS: &str = "/etc/init.d";

/// Which process goes on after the fork.
pub(crate) enum Side {
    /// Pid 1, which has services if there is something beside it.
    PidOne(Option<Beside>),
    /// The new one.
    Supervisor(Supervisor),
}

/// The supervisor as others see it.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) pid: Pid,
    /// For the process of the program.
    pub(crate) starter: Starter,
}

/// Has services started.
#[derive(Debug)]
pub(crate) struct Starter(UnixStream);

/// Forks the supervisor, if there is something to do for it.
pub(crate) fn fork(services: Option<&Services>) -> Result<Side> {
    let Some(services) = services else {
        return Ok(Side::PidOne(None));
    };
    let step = || "fork the supervisor of services".to_owned();
    let (ours, theirs) = UnixStream::pair().map_err(host(step))?;
    match sys::process::fork().map_err(host(step))? {
        Fork::Parent(pid) => Ok(Side::PidOne(Some(Beside {
            pid,
            starter: Starter(ours),
        }))),
        Fork::Child => Ok(Side::Supervisor(Supervisor::new(
            Box::new(services.clone()),
            theirs,
        ))),
    }
}

impl Starter {
    /// Waits until all services are ready; gives why one is not.
    pub(crate) fn start(self) -> Result<Option<Failure>> {
        // One that has ended may have said why.
        let _unheard = control::send(&self.0, &ToStub::Start, &[]);
        match control::recv(&self.0)? {
            Some(received) => match received.message {
                FromStub::Ready => Ok(None),
                FromStub::Failed(failure) => Ok(Some(failure)),
                _ => Err(Error::Unexpected("instead of word of services")),
            },
            None => Err(Error::Request {
                step: "org.pouch.rich.services: their supervisor has ended".to_owned(),
                errno: 0,
            }),
        }
    }
}
