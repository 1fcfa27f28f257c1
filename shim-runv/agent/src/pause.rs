//! The program of a sandbox without a container: it keeps the pod's namespaces, and reaps who is left to it where
//! the pod's containers share their view of processes. It must not end but by SIGKILL.

use std::convert::Infallible;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

use crate::error::{Error, Result};
use crate::say;

/// Its only argument; the shim writes it into the sandbox's config.json.
pub(crate) const PAUSE: &str = guest::PAUSE;

/// Waits for its end.
pub(crate) fn for_ever() -> ExitCode {
    match reap() {
        Ok(never) => match never {},
        Err(error) => {
            say(&format!("runv-agent {PAUSE}: {}", error.chain()));
            ExitCode::from(crate::EXIT_FAILED)
        }
    }
}

fn reap() -> Result<Infallible> {
    let child_ended = SigSet::from(Signal::SIGCHLD);
    child_ended
        .thread_block()
        .map_err(Error::io("block SIGCHLD"))?;
    loop {
        sys::reap();
        child_ended.wait().map_err(Error::io("wait for SIGCHLD"))?;
    }
}
