//! Further processes in a running container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use bundle::{NamespaceKind, Status};
use launch::control::{FromStub, ToStub};
use launch::plan::{ExecPlan, JoinNamespace, Process};
use sys::{Child, Place, Signal, Spawn};

use crate::channel::Channel;
use crate::container::{Container, EXEC_LIMIT};
use crate::create::Stdio;
use crate::joined::Joined;
use crate::listener::Starting;
use crate::process::ProcessId;
use crate::stub::Image;
use crate::{Error, Result, agent, inherited, out_of_memory, resctrl, stub};

/// Whom we wait for.
pub(crate) const JOINING: &str = "the process that joins the container";

/// A process to run.
#[derive(Debug)]
pub struct Request<'a> {
    /// The program and its rights.
    pub process: Process,
    /// Its descriptors.
    pub stdio: Stdio<'a>,
    /// Whether a paused container is good enough: the process starts to run when it is resumed.
    pub paused: Paused,
}

/// What to do in a paused container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    /// Refuse.
    Refuse,
    /// Go on, if it is resumed within [`EXEC_LIMIT`].
    Ignore,
}

/// A process that stands in the container and waits for the word.
#[derive(Debug)]
pub struct Prepared {
    /// The process.
    pub child: Joined,
    /// The master of its terminal, when one was asked for.
    pub terminal: Option<OwnedFd>,
    pub(crate) starting: Starting,
    pub(crate) channel: Channel,
}

impl Container {
    /// Brings a process into the container, up to the last step before its program.
    ///
    /// # Errors
    /// [`Error::State`] unless the container is created or runs; [`Error::Inside`] when the
    /// request does not fit the image. No process is left then.
    pub fn exec(&self, request: &Request<'_>) -> Result<Prepared> {
        match self.status()? {
            Status::Stopped => {
                return Err(Error::State("cannot exec in a stopped container".into()));
            }
            Status::Paused if request.paused == Paused::Refuse => {
                return Err(Error::State(
                    "cannot exec in a paused container (use --ignore-paused to override)".into(),
                ));
            }
            Status::Creating => {
                return Err(Error::State(
                    "cannot exec in a container in the creating state".into(),
                ));
            }
            _ => {}
        }
        let init = self.init()?;
        let kills = self.cgroup.oom_kills();
        let joined = if sys::process::has_setns() {
            self.join(request, init)
        } else {
            agent::join(self, request, init)
        };
        joined
            .map_err(|error| out_of_memory::explain_exec(&self.cgroup, kills, error))
            .map_err(stub::explain)
    }

    fn join(&self, request: &Request<'_>, init: ProcessId) -> Result<Prepared> {
        let (channel, theirs) = Channel::pair("the stub that joins the container", EXEC_LIMIT)?;
        let mut stub = self.spawn_stub(request, init, theirs, &channel)?;
        let plan = ExecPlan {
            namespaces: self.namespaces(init),
            root: self.root(init),
            process: request.process.clone(),
        };
        channel.send(&ToStub::Exec(Box::new(plan)))?;
        let child = Child::adopt(channel.hello(JOINING)?.ok_or_else(|| vanished(""))?);
        tracing::debug!(pid = child.pid().as_raw(), "child process in init()");
        // The stub has opened the namespaces by now. Was the number in their paths init's until
        // then? If not, the process ends here, before it ran anything.
        init.signal(0)?;
        resctrl::join(&self.journal, child.pid().as_raw())?;
        let terminal = await_ready(&channel, request.stdio)?;
        // It has forked the process into the container and ends by itself.
        stub.wait_timeout(channel.left())
            .map_err(Error::io("wait for the joining stub"))?;
        Ok(Prepared {
            starting: Starting::of(self, Status::Running, child.pid().as_raw()),
            child: Joined::Ours(child),
            terminal,
            channel,
        })
    }

    /// The stub, in the container's cgroups.
    fn spawn_stub(
        &self,
        request: &Request<'_>,
        init: ProcessId,
        control: OwnedFd,
        channel: &Channel,
    ) -> Result<Child> {
        let image = Image::get(&self.dir)?;
        let inherited_fds = request.process.preserve_fds;
        let control_fd = inherited::end(inherited_fds);
        let image_fd = control_fd + 1;
        let mut spawn = Spawn::new(Path::new(&format!("/proc/self/fd/{image_fd}")))
            .fd(image_fd, image.as_fd())
            .argv0(stub::NAME)
            .args(["exec".to_owned(), control_fd.to_string()])
            .env_clear_set(Vec::new())
            .new_session()
            .pdeath_signal(Signal::SIGKILL);
        if let Stdio::Streams([stdin, stdout, stderr]) = request.stdio {
            spawn = spawn.stdin(stdin).stdout(stdout).stderr(stderr);
        }
        let spawn = inherited::pass_on(spawn, inherited_fds)?.fd(control_fd, control);
        let cpus = &request.process.scheduling.cpus_initial;
        let started = match self.cgroup.open_unified()? {
            // The first affinity is for the time before it is in the cgroup.
            Some(directory) if cpus.is_empty() => spawn.spawn_into_cgroup(directory.as_fd()),
            Some(_) | None => spawn.spawn().map(|child| (child, Place::Outside)),
        };
        let (child, place) = started.map_err(Error::io("start runlxc-init"))?;
        // These words are runc's, for whoever reads its log.
        let process = child.pid().as_raw();
        tracing::debug!("nsexec container setup");
        if !cpus.is_empty() {
            sys::scheduling::set_cpu_affinity(child.pid().as_raw(), cpus).map_err(Error::io(
                format!("run on the CPUs {cpus:?} of process.execCPUAffinity.initial"),
            ))?;
            tracing::debug!("nsexec[{process}]: affinity: {:#x}", mask(cpus));
        }
        if place == Place::Outside {
            self.cgroup
                .attach_unified_beside(init.as_pid(), child.pid())?;
        }
        channel.enter(JOINING, &self.cgroup.open_tasks()?)?;
        Ok(child)
    }

    /// Where others live in its mount namespace, that has another root than the container.
    fn root(&self, init: ProcessId) -> Option<String> {
        let shared = self.journal.shared_mounts.as_ref();
        shared.map(|_| format!("/proc/{}/root", init.pid))
    }

    fn namespaces(&self, init: ProcessId) -> Vec<JoinNamespace> {
        let kinds = NamespaceKind::ALL
            .iter()
            .filter(|kind| self.journal.namespaces.contains(kind));
        let join = kinds.map(|kind| JoinNamespace {
            flag: kind.clone_flag(),
            path: format!("/proc/{}/ns/{}", init.pid, kind.proc_name()),
        });
        join.collect()
    }
}

impl Prepared {
    /// Lets it become its program; gives the process and its terminal.
    ///
    /// # Errors
    /// [`Error::Inside`] with the reason why the program does not run; the process is gone.
    pub fn start(self) -> Result<(Joined, Option<OwnedFd>)> {
        self.channel.send(&ToStub::Start)?;
        tracing::debug!("setns_init: about to exec");
        match self.starting.await_program(&self.channel)? {
            true => Ok((self.child, self.terminal)),
            false => Err(vanished(": it did not start")),
        }
    }
}

/// Waits until the process has all but its program; gives the master of its terminal.
///
/// # Errors
/// Why it has not, as it tells; [`Error::Vanished`].
pub(crate) fn await_ready(channel: &Channel, stdio: Stdio<'_>) -> Result<Option<OwnedFd>> {
    let Some(mut ready) = channel.receive()? else {
        return Err(vanished(""));
    };
    if ready.message != FromStub::Ready {
        return Err(vanished(": it did not get ready"));
    }
    match (stdio, ready.fds.pop()) {
        (Stdio::Terminal, None) => Err(vanished(": it sent no terminal")),
        (_, terminal) => Ok(terminal),
    }
}

/// The first 64 CPUs as a mask.
fn mask(cpus: &[u32]) -> u64 {
    let bits = cpus.iter().filter_map(|cpu| 1u64.checked_shl(*cpu));
    bits.fold(0, |mask, bit| mask | bit)
}

pub(crate) fn vanished(hint: &str) -> Error {
    Error::Vanished {
        what: JOINING,
        hint: hint.to_owned(),
    }
}
