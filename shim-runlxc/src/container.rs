//! A container as its directory and journal tell of it, and the state it is in now.

use std::path::Path;
use std::time::Duration;

use bundle::{State, Status};
use cgroups::Cgroup;
use launch::plan::PidOne;

use crate::id::ContainerId;
use crate::journal::{Journal, Phase};
use crate::process::{Liveness, ProcessId};
use crate::state_dir::StateDir;
use crate::{Error, Result};

/// Everything from config.json to a waiting init must be done by then, hooks aside.
pub const CREATE_LIMIT: Duration = Duration::from_secs(60);
/// From `lxc-start` to the stub's hello.
pub const LXC_LIMIT: Duration = Duration::from_secs(30);
/// From the word to start to execve, hooks aside.
pub const START_LIMIT: Duration = Duration::from_secs(30);
/// From the spawn of an exec to its program.
pub const EXEC_LIMIT: Duration = Duration::from_secs(30);
/// From SIGKILL to the end of a process.
pub const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A container on this host.
#[derive(Debug)]
pub struct Container {
    pub(crate) dir: StateDir,
    pub(crate) journal: Journal,
    pub(crate) cgroup: Cgroup,
}

impl Container {
    /// Reads the container `id` below the state root.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Journal`] for a journal that is not ours.
    pub fn open(root: &Path, id: &ContainerId) -> Result<Self> {
        let dir = StateDir::at(root, id);
        let journal = Journal::read(&dir)?;
        Ok(Self::of(dir, journal))
    }

    fn of(dir: StateDir, journal: Journal) -> Self {
        let cgroup = Cgroup::from_paths(journal.cgroup.clone());
        Self {
            dir,
            journal,
            cgroup,
        }
    }

    /// Its journal.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Host pid of init; 0 before there is one.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.journal.init.map_or(0, |init| init.pid)
    }

    /// Init.
    ///
    /// # Errors
    /// [`Error::NotRunning`] before there is one.
    pub(crate) fn init(&self) -> Result<ProcessId> {
        self.journal.init.ok_or(Error::NotRunning)
    }

    /// Init, when it is not the program but its parent.
    pub(crate) fn stub(&self) -> Option<ProcessId> {
        match self.journal.pid_one {
            PidOne::Program | PidOne::Systemd(_) | PidOne::SbinInit(_) => None,
            PidOne::Stub { .. } => self.journal.init,
        }
    }

    /// The state it is in now.
    ///
    /// # Errors
    /// When `/proc` or the cgroup cannot be read.
    pub fn status(&self) -> Result<Status> {
        let alive = match self.journal.init {
            Some(init) => init.liveness()? == Liveness::Alive,
            None => false,
        };
        if self.journal.phase == Phase::Creating {
            // Whoever creates holds the directory's lock; the kernel frees it when he dies.
            if self.dir.is_locked()? {
                return Ok(Status::Creating);
            }
            // It may have been made since the journal was read.
            let now = Journal::read(&self.dir)?;
            if now.phase == Phase::Creating {
                return Ok(Status::Stopped);
            }
            return Self::of(self.dir.clone(), now).status();
        }
        if !alive {
            return Ok(Status::Stopped);
        }
        if self.dir.start_socket().exists() {
            return Ok(Status::Created);
        }
        Ok(if self.cgroup.is_frozen()? {
            Status::Paused
        } else {
            Status::Running
        })
    }

    /// The OCI state for hooks at this moment of its life.
    #[must_use]
    pub fn state_json(&self, status: Status) -> String {
        let pid = if status == Status::Stopped {
            0
        } else {
            self.pid()
        };
        let state = State {
            oci_version: bundle::state::OCI_VERSION,
            id: &self.journal.id,
            status,
            pid,
            bundle: &self.journal.bundle,
            annotations: &self.journal.annotations,
        };
        state.to_json()
    }

    /// Refuses unless the container is in one of these states.
    pub(crate) fn require(&self, verb: &str, wanted: &[Status]) -> Result<Status> {
        required(self.status()?, verb, wanted)
    }
}

/// The state, unless it is none of these.
pub(crate) fn required(status: Status, verb: &str, wanted: &[Status]) -> Result<Status> {
    if wanted.contains(&status) {
        return Ok(status);
    }
    Err(Error::State(format!(
        "cannot {verb} a container in the {} state",
        status.as_str()
    )))
}
