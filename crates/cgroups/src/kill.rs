//! Signals to every process of a cgroup, those included that are being forked meanwhile.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use sys::{Pid, Signal};

use crate::cgroup::{Cgroup, Freezer};
use crate::wait::{Events, Patience, Waited};
use crate::{Error, Result, file, procs, v1, v2};

const SIGKILL: i32 = Signal::SIGKILL as i32;

/// So long a process may take to die of SIGKILL: one that waits for a disk does not die before.
const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Sends a signal to every process of the cgroup and of those below it. An empty or missing
    /// cgroup is no error.
    ///
    /// SIGKILL: thaws, too, and returns when nobody is left (10 seconds at most). By
    /// cgroup.kill (Linux 5.14) where version 2 is mounted, on a hybrid host as well; else by
    /// freezing, killing and thawing until nobody is left.
    ///
    /// Other signals: once to each, while the cgroup is frozen so that none is missed. One that
    /// was frozen before stays so.
    ///
    /// `signal` is a number because real-time signals, which stop some inits, have no name.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        if signal == SIGKILL {
            self.kill()
        } else {
            self.signal(signal, |_| true)
        }
    }

    /// As [`Cgroup::kill_all`] with another signal than SIGKILL, to all but one.
    pub fn signal_all_but(&self, spared: Pid, signal: i32) -> Result<()> {
        self.signal(signal, |pid| pid != spared)
    }

    fn kill(&self) -> Result<()> {
        let mut patience = Patience::new(KILL_LIMIT);
        let events = self
            .paths
            .unified()
            .and_then(|dir| Events::open(dir, "cgroup.events").ok());
        let by_kernel = match self.paths.unified() {
            Some(dir) => kill_by_kernel(dir)?,
            None => false,
        };
        loop {
            // Read before looking: a change after it ends the pause below.
            let _armed = events.as_ref().map(Events::read);
            let processes = self.procs()?;
            if by_kernel {
                // One that a tool moved in some hierarchies only is not the kernel's to kill.
                send(&processes, SIGKILL)?;
            } else if !processes.is_empty() {
                self.signal_frozen(SIGKILL, |_| true)?;
            }
            self.thaw_all()?;
            if processes.is_empty() {
                return Ok(());
            }
            if patience.pause(events.as_ref()) == Waited::TooLong {
                return Err(Error::Timeout {
                    what: "killing",
                    path: self.leading()?.to_owned(),
                    limit_ms: KILL_LIMIT.as_secs() * 1000,
                });
            }
        }
    }

    fn signal(&self, signal: i32, is_meant: impl Fn(Pid) -> bool) -> Result<()> {
        if self.is_frozen()? {
            return send(&self.those(is_meant)?, signal);
        }
        self.signal_frozen(signal, is_meant)
    }

    fn those(&self, are_meant: impl Fn(Pid) -> bool) -> Result<Vec<Pid>> {
        let mut processes = self.procs()?;
        processes.retain(|pid| are_meant(*pid));
        Ok(processes)
    }

    /// Freezes as well as can be done, signals, and thaws whatever happened.
    fn signal_frozen(&self, signal: i32, is_meant: impl Fn(Pid) -> bool) -> Result<()> {
        // One that cannot be frozen (no freezer, or a process that sleeps in the kernel) is
        // signalled as it runs.
        let _thaw = self.freeze().ok().map(|()| ThawOnDrop(self));
        send(&self.those(is_meant)?, signal)
    }

    /// Thaws the cgroup and, in version 1, what the container froze below it itself.
    fn thaw_all(&self) -> Result<()> {
        match self.freezer() {
            Ok(Freezer::V1(dir)) => procs::tree(dir)?.iter().try_for_each(|dir| thaw_one(dir)),
            // A frozen task of version 2 dies.
            Ok(Freezer::V2(_)) | Err(Error::NoController { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Asking is a tenth of the cost of thawing what is thawed.
fn thaw_one(dir: &Path) -> Result<()> {
    if !v1::freezer::is_frozen(dir)? {
        return Ok(());
    }
    match v1::freezer::thaw(dir) {
        Err(error) if error.is_not_found() => Ok(()),
        thawed => thawed,
    }
}

/// Whether the kernel has it and did it.
fn kill_by_kernel(dir: &Path) -> Result<bool> {
    match file::write(dir, "cgroup.kill", "1") {
        Ok(()) => Ok(true),
        // Not before Linux 5.14; never in a threaded cgroup (EOPNOTSUPP).
        Err(error) if error.is_not_found() || file::is(&error, Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

fn send(processes: &[Pid], signal: i32) -> Result<()> {
    processes
        .iter()
        .try_for_each(|pid| match sys::process::kill_number(*pid, signal) {
            Err(source) if source.raw_os_error() != Some(Errno::ESRCH as i32) => {
                Err(Error::Kernel {
                    call: "kill",
                    source,
                })
            }
            _sent_or_gone => Ok(()),
        })
}

/// A cgroup that was frozen for a moment.
struct ThawOnDrop<'a>(&'a Cgroup);

impl Drop for ThawOnDrop<'_> {
    fn drop(&mut self) {
        // There is nobody to tell; is_frozen() shows it, and SIGKILL thaws again.
        let _left = match self.0.freezer() {
            Ok(Freezer::V1(dir)) => v1::freezer::thaw(dir),
            Ok(Freezer::V2(dir)) => v2::freezer::thaw(dir),
            Err(error) => Err(error),
        };
    }
}
