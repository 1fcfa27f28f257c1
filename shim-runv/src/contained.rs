//! A container that was made, behind a shim: shim-core's `Container` over calls to the agent.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cgroups::{Cgroup, Stats};
use guest::call::{Answer, Call, Create, Directory, Disk, Exec, File, Process, Size, Target};
use launch::hooks::{self, Stage};
use launch::plan::Hook;
use nix::sys::signal::Signal;
use shim_core::runtime::Result;
use shim_core::{ExecRequest, ProcessIo, SignalTarget, Started, UpdateRequest, WindowSize};

use crate::journal::{Journal, StateDir};
use crate::machine::{Machine, next_pid};
use crate::pod::{Plugged, Sandbox};
use crate::size::{Limits, host_processors};
use crate::stage::Staged;
use crate::{Error, streams};

/// What a guest may take for setting a container up, and for a process that joins.
const SET_UP_LIMIT: Duration = Duration::from_secs(60);

/// What it may take for anything quick.
pub(crate) const QUICK_LIMIT: Duration = Duration::from_secs(20);

/// Output that readers leave untaken holds a container's end up for so long.
const DELETE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn poststop(hooks: &[Hook], state: &str) {
    // The container is gone whatever they say (runtime-spec, Lifecycle).
    if let Err(error) = hooks::run_all(hooks, state, Stage::Poststop) {
        tracing::warn!(error = shim_core::chain(&error), "a hook failed");
    }
}

/// What a container is to the machine it is in.
#[derive(Debug)]
pub(crate) enum Part {
    /// The machine ends with it; QEMU is in that cgroup.
    Owner(Arc<Sandbox>, Cgroup),
    /// It comes and goes.
    Member(Arc<Sandbox>),
}

impl Part {
    /// The machine and whose that is.
    pub(crate) fn sandbox(&self) -> &Arc<Sandbox> {
        match self {
            Self::Owner(sandbox, _) | Self::Member(sandbox) => sandbox,
        }
    }
}

/// A container in its machine.
#[derive(Debug)]
pub struct Contained {
    pub(crate) id: String,
    pub(crate) dir: StateDir,
    pub(crate) journal: Journal,
    pub(crate) hooks_poststart: Vec<Hook>,
    pub(crate) state_running: String,
    /// By which the host knows its init.
    pub(crate) pid: i32,
    pub(crate) part: Part,
    /// Those of its config.json, or of the last Update.
    pub(crate) limits: Mutex<Limits>,
    /// What came and goes with it.
    pub(crate) brought: Mutex<Brought>,
}

/// What of the host is in a machine for one container.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    /// Disks.
    pub(crate) disks: Vec<Plugged>,
    /// Volumes.
    pub(crate) volumes: Vec<Staged>,
}

/// What a container is made of in the guest.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Its config.json.
    pub(crate) config: Vec<u8>,
    /// Its root.
    pub(crate) root: Disk,
    /// Files that it mounts.
    pub(crate) files: Vec<File>,
    /// Directories that it mounts.
    pub(crate) directories: Vec<Directory>,
    /// Names of volumes that it mounts.
    pub(crate) volumes: Vec<String>,
}

impl Contained {
    /// Its machine and whose that is.
    pub(crate) fn sandbox(&self) -> &Arc<Sandbox> {
        self.part.sandbox()
    }

    fn machine(&self) -> &Machine {
        &self.sandbox().machine
    }

    fn init(&self) -> Process {
        Process {
            container: self.id.clone(),
            exec: None,
        }
    }

    /// Makes it in its machine; gives the master of its terminal.
    pub(crate) fn create(
        &self,
        parts: Parts,
        io: ProcessIo,
    ) -> std::result::Result<Option<OwnedFd>, Error> {
        let (streams, terminal) = streams::open(io, &self.machine().agent)?;
        let io = streams.io;
        self.machine()
            .processes
            .add(self.init(), self.pid, Arc::new(streams));
        let call = Call::Create(Box::new(Create {
            id: self.id.clone(),
            config: parts.config,
            disk: parts.root,
            files: parts.files,
            directories: parts.directories,
            volumes: parts.volumes,
            io,
        }));
        let what = "the making of the container";
        match self.machine().agent.ask(what, call, SET_UP_LIMIT) {
            Ok(Answer::Pid(_)) => Ok(terminal),
            other => {
                let error = other.err().unwrap_or(Error::Answer);
                // Its end is nobody's to know.
                self.machine().processes.remove(&self.init());
                if !matches!(error, Error::Guest(_)) {
                    self.give_up();
                }
                Err(error)
            }
        }
    }

    /// Has the guest undo what it may have begun, or still does; what it refused it has undone itself. A
    /// machine of its own ends anyway.
    fn give_up(&self) {
        let call = Call::Delete(self.id.clone());
        if let Part::Member(sandbox) = &self.part
            && let Err(error) = sandbox.machine.agent.post("the removal", call, QUICK_LIMIT)
        {
            let error = error.chain();
            tracing::warn!(
                container = self.id,
                error,
                "what was begun stays in the guest"
            );
        }
    }

    /// Whom a request of shim-core is about; none when there is no such process.
    fn process(&self, target: &SignalTarget) -> Option<Process> {
        match target {
            SignalTarget::Init | SignalTarget::All => Some(self.init()),
            SignalTarget::Exec { pid, .. } => self.machine().processes.find(*pid),
        }
    }

    /// Removes it from the machine, once all that its processes have written is here; ends the machine if
    /// that is its own.
    fn end(&self) {
        let call = Call::Delete(self.id.clone());
        match self.machine().agent.tell("the removal", call, DELETE_LIMIT) {
            // Not running: it was ended before.
            Ok(()) | Err(Error::NotRunning) => {}
            Err(error) => {
                tracing::warn!(container = self.id, error = error.chain(), "output is lost");
                // The guest waits for nobody who takes it.
                self.machine().processes.stop_reading(&self.id);
            }
        }
        if let Part::Owner(sandbox, _) = &self.part {
            sandbox.machine.end();
        }
        // No code panics while it holds the lock.
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        drop(std::mem::take(&mut *brought));
    }

    fn tell(&self, what: &'static str, call: Call) -> Result<()> {
        Ok(self.machine().agent.tell(what, call, QUICK_LIMIT)?)
    }
}

impl shim_core::Container for Contained {
    fn start(&self) -> Result<()> {
        let call = Call::Start(self.id.clone());
        let what = "the start of the program";
        self.machine().agent.tell(what, call, SET_UP_LIMIT)?;
        hooks::run_all(&self.hooks_poststart, &self.state_running, Stage::Poststart)
            .map_err(Error::from)?;
        Ok(())
    }

    fn exec(&self, request: ExecRequest) -> Result<Started> {
        let (streams, terminal) = streams::open(request.io, &self.machine().agent)?;
        let (io, pid) = (streams.io, next_pid());
        let process = Process {
            container: self.id.clone(),
            exec: Some(request.id.clone()),
        };
        let processes = &self.machine().processes;
        processes.add(process.clone(), pid, Arc::new(streams));
        let call = Call::Exec(Box::new(Exec {
            container: self.id.clone(),
            id: request.id,
            process: request.process_json,
            io,
        }));
        match self.machine().agent.ask("the exec", call, SET_UP_LIMIT) {
            Ok(Answer::Pid(_)) => Ok(Started { pid, terminal }),
            other => {
                processes.remove(&process);
                Err(other.err().unwrap_or(Error::Answer).into())
            }
        }
    }

    fn signal(&self, target: SignalTarget, signal: i32) -> Result<()> {
        let is_init = !matches!(target, SignalTarget::Exec { .. });
        let target = match target {
            SignalTarget::All => Target::All(self.id.clone()),
            one => Target::One(self.process(&one).ok_or(Error::NotRunning)?),
        };
        let call = Call::Signal { target, signal };
        match (
            self.machine().agent.tell("a signal", call, QUICK_LIMIT),
            &self.part,
        ) {
            (Ok(()), _) => Ok(()),
            (Err(error), Part::Owner(sandbox, _))
                if is_init
                    && signal == Signal::SIGKILL as i32
                    && !matches!(error, Error::NotRunning) =>
            {
                let error = error.chain();
                tracing::warn!(
                    container = self.id,
                    error,
                    "a guest that does not kill is killed"
                );
                sandbox.machine.end();
                Ok(())
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    fn resized(&self, target: SignalTarget, size: WindowSize) {
        let Some(process) = self.process(&target) else {
            return;
        };
        let size = Size {
            rows: size.rows,
            columns: size.columns,
        };
        // A guest that is gone has no terminals.
        let call = Call::Resize { process, size };
        if let Err(error) = self.machine().agent.post("the size", call, QUICK_LIMIT) {
            tracing::debug!(error = error.chain(), "a terminal keeps its size");
        }
    }

    fn pause(&self) -> Result<()> {
        self.tell("the pause", Call::Pause(self.id.clone()))
    }

    fn resume(&self) -> Result<()> {
        self.tell("the resume", Call::Resume(self.id.clone()))
    }

    fn update(&self, request: &UpdateRequest) -> Result<()> {
        let mut keys = request.annotations.keys();
        if let Some(key) = keys.find(|key| key.starts_with(bundle::annotations::PREFIX)) {
            let what = format!("annotations.{key}");
            let why = "of a virtual machine only limits change while it runs";
            return Err(Error::unsupported(what, why).into());
        }
        let resources = serde_json::from_slice(&request.resources_json)
            .map_err(|error| Error::Usage(format!("the limits: {error}")))?;
        // No code panics while it holds the lock; held, so that the last one to be told is the last one known.
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = limits.updated(&resources);
        let size = self.machine().size;
        size.check(*limits, wanted, host_processors())?;
        let call = Call::Update {
            container: self.id.clone(),
            resources: request.resources_json.clone(),
        };
        self.tell("the update", call)?;
        *limits = wanted;
        Ok(())
    }

    fn pids(&self) -> Result<Vec<i32>> {
        Ok(self.machine().processes.pids(&self.id))
    }

    fn stats(&self) -> Result<Stats> {
        if let Part::Owner(_, cgroup) = &self.part {
            return Ok(cgroup.stats().map_err(Error::from)?);
        }
        let call = Call::Stats(self.id.clone());
        match self.machine().agent.ask("the figures", call, QUICK_LIMIT)? {
            Answer::Stats(stats) => Ok(*stats),
            _ => Err(Error::Answer.into()),
        }
    }

    fn oom_descriptor(&self) -> Result<Option<OwnedFd>> {
        Ok(Some(self.machine().oom_kills.follow(&self.id)?))
    }

    fn take_oom(&self) -> Result<u64> {
        Ok(self.machine().oom_kills.take(&self.id)?)
    }

    fn init_exited(&self) -> Result<()> {
        self.end();
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        self.end();
        self.machine().processes.forget(&self.id);
        self.machine().oom_kills.forget(&self.id);
        let undone = self.dir.undo()?;
        if let Part::Member(sandbox) = &self.part {
            sandbox.dir.unlink(&self.dir)?;
        }
        if undone.is_some() {
            poststop(&self.journal.hooks_poststop, &self.journal.state_stopped);
        }
        Ok(())
    }
}
