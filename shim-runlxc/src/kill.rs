//! Signals, and freezing and thawing.

use bundle::Status;
use launch::image_init::style::Style;
use launch::plan::PidOne;
use launch::signals::STOPS;
use sys::Signal;

use crate::container::{Container, required};
use crate::journal::PidNamespace;
use crate::process::ProcessId;
use crate::{Error, Result};

const SIGKILL: i32 = Signal::SIGKILL as i32;

/// What no process can pass on, because it happens to itself, and what undoes it.
const STOP_AND_GO: [i32; 2] = [Signal::SIGSTOP as i32, Signal::SIGCONT as i32];

impl Container {
    /// Sends a signal (a number, real-time ones too) to init. SIGKILL reaches frozen processes,
    /// and without a pid namespace of its own all of the container's processes.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when the container has stopped, and nothing is left of it.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let kills_all = signal == SIGKILL && self.journal.pid_namespace == PidNamespace::Shared;
        if self.status()? == Status::Stopped && !(kills_all && self.has_processes()?) {
            return Err(Error::NotRunning);
        }
        if kills_all {
            return self.kill_all(signal);
        }
        if self.stub().is_some() && STOP_AND_GO.contains(&signal) {
            return self.kill_all(signal);
        }
        let init = self.init()?;
        init.signal(self.for_image_init(signal).unwrap_or(signal))?;
        if signal == SIGKILL {
            self.thaw_for_kill()?;
        }
        Ok(())
    }

    /// Whether processes are in its cgroup.
    fn has_processes(&self) -> Result<bool> {
        Ok(self.cgroup.exists() && !self.cgroup.procs()?.is_empty())
    }

    /// Sends a signal to every process in the container's cgroup; none there is success. A pid 1
    /// that is not the program gets SIGKILL only: it would pass others on to those that have them.
    ///
    /// # Errors
    /// When the cgroup cannot be read or the kernel refuses.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        if let Some(halt) = self.for_image_init(signal) {
            return self.init()?.signal(halt);
        }
        match self.stub().or(self.image_init()) {
            Some(stub) if signal != SIGKILL => {
                Ok(self.cgroup.signal_all_but(stub.as_pid(), signal)?)
            }
            _ => Ok(self.cgroup.kill_all(signal)?),
        }
    }

    /// Pid 1, when it is an image's own init that was started.
    fn image_init(&self) -> Option<ProcessId> {
        match self.journal.pid_one {
            PidOne::Systemd(_) | PidOne::SbinInit(_) if !self.dir.start_socket().exists() => {
                self.journal.init
            }
            _ => None,
        }
    }

    /// What an image's init gets instead of what stops a program.
    fn for_image_init(&self, signal: i32) -> Option<i32> {
        self.image_init()?;
        // Whoever made the container before there were several kinds said nothing.
        let (wanted, usual) = match &self.journal.pid_one {
            PidOne::Systemd(wanted) => (wanted, Style::Systemd),
            PidOne::SbinInit(wanted) => (wanted, Style::Sysv),
            PidOne::Program | PidOne::Stub { .. } => return None,
        };
        let stop = wanted.stop_signal.unwrap_or(usual.stop_signal());
        STOPS.contains(&signal).then_some(stop)
    }

    /// A killed process of a frozen version 1 cgroup dies only once it is thawed.
    fn thaw_for_kill(&self) -> Result<()> {
        if self.cgroup.is_frozen()? {
            self.cgroup.thaw()?;
        }
        Ok(())
    }

    /// Freezes all processes of the container.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when it has stopped, [`Error::State`] unless it runs or is created.
    pub fn pause(&self) -> Result<()> {
        let status = self.status()?;
        if status == Status::Stopped {
            return Err(Error::NotRunning);
        }
        required(status, "pause", &[Status::Running, Status::Created])?;
        Ok(self.cgroup.freeze()?)
    }

    /// Thaws them.
    ///
    /// # Errors
    /// [`Error::State`] unless it is paused.
    pub fn resume(&self) -> Result<()> {
        let frozen = self.cgroup.is_frozen()?;
        if !frozen {
            return Err(Error::State("container not paused".into()));
        }
        Ok(self.cgroup.thaw()?)
    }
}
