//! A process that stays until it is told to end, with its log in a file: containerd, or a snapshotter of ours.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Deref,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    process::show,
    wait::{SOON, for_end_of},
};

/// How much of the log is shown when a test fails.
const LOG_TAIL_BYTES: u64 = 12_000;

/// The process while it runs.
#[derive(Debug, Default)]
pub(crate) struct Daemon {
    child: Mutex<Option<Child>>,
}

/// One that is ended when this is dropped: a peer of a test, which has nothing more to learn of it.
#[derive(Debug, Default)]
pub(crate) struct Ending(Daemon);

impl Deref for Ending {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // It is killed at a limit.
        drop(self.end(Signal::SIGTERM));
    }
}

impl Daemon {
    /// Starts it, with both outputs at the end of the log; its input is the caller's to choose.
    pub(crate) fn start(&self, command: &mut Command, log: &Path) -> Result<()> {
        let mut child = self.child();
        let shown = show(command);
        ensure!(child.is_none(), "`{shown}` runs already");
        let log = File::options().create(true).append(true).open(log)?;
        command
            .stdout(log.try_clone()?)
            .stderr(log)
            // A signal for the terminal's foreground group is not for it.
            .process_group(0);
        let started = command.spawn();
        *child = Some(started.with_context(|| format!("starting `{shown}`"))?);
        Ok(())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Result<i32> {
        let child = self.child();
        let child = child.as_ref().context("the daemon is stopped")?;
        Ok(i32::try_from(child.id())?)
    }

    /// How it ended by itself; nothing while it runs.
    pub(crate) fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut child = self.child();
        Ok(child.as_mut().map(Child::try_wait).transpose()?.flatten())
    }

    /// Ends it by a signal and waits; nothing when it was stopped already. At the limit it is
    /// killed, which is an error.
    pub(crate) fn end(&self, signal: Signal) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.child().take() else {
            return Ok(None);
        };
        let pid = i32::try_from(child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal}"))?;
        let ended = for_end_of(pid, SOON);
        if ended.is_err() {
            child.kill()?;
        }
        let status = child.wait()?;
        ended.with_context(|| format!("it was killed, as {signal} did not end it"))?;
        Ok(Some(status))
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("nobody panics while holding it")
    }
}

/// The end of a log.
pub(crate) fn log_tail(path: &Path) -> String {
    tail(path).unwrap_or_else(|error| format!("no log: {error}"))
}

fn tail(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
