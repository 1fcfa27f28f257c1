//! runlxc behind a shim: shim-core's two traits over this crate's blocking library.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bundle::{Bundle, HostFacts, ProcessContext};
use cgroups::{OomNews, OomWatch, Stats};
use clap::ValueEnum as _;
use launch::plan::{RootEntry, SeccompFilter, Toggle};
use shim_core::runtime::Result;
use shim_core::{
    CheckpointRequest, Code, CreateRequest, Created, DeleteRequest, ExecRequest, Features,
    Identity, Options, ProcessIo, Runtime, ShimError, SignalTarget, Started, UpdateRequest,
};

use crate::checkpoint::{self, Afterwards, Part};
use crate::components::Components;
use crate::container::Container;
use crate::create::{self, Parent, Stdio};
use crate::criu::wire::{CgroupsMode, Options as CriuOptions};
use crate::delete::{self, Running};
use crate::exec::{self, Paused};
use crate::host::{Host, hardening_optional};
use crate::id::ContainerId;
use crate::journal::PidNamespace;
use crate::lxcfs::{Lxcfs, Watch};
use crate::process::ProcessId;
use crate::scope::CgroupManager;
use crate::{Error, features};

/// State root of the shim; a folder for each of containerd's namespaces is below it.
const ROOT: &str = "/run/containerd/runlxc";

/// Behind a shim that was killed, containerd gives the whole clean-up 5 s. So much of it is for what a
/// rich container has for its end; the rest is for starting the verb and for undoing it all.
const END_FROM_DISK_MAX: Duration = Duration::from_secs(3);

/// CRIU's log and work files in the bundle, of a checkpoint that failed.
const CRIU_WORK: &str = "criu-work";

/// The runtime.
#[derive(Debug, Default)]
pub struct RunLxc {
    host: OnceLock<Host>,
    views: Watch,
}

impl RunLxc {
    fn host(&self) -> std::result::Result<&Host, Error> {
        match self.host.get() {
            Some(host) => Ok(host),
            None => {
                let found = Host::detect()?;
                Ok(self.host.get_or_init(|| found))
            }
        }
    }
}

fn root(namespace: &str, options: &Options) -> std::result::Result<PathBuf, Error> {
    let namespace = ContainerId::parse(namespace)?;
    let base = options.root.as_deref().unwrap_or(Path::new(ROOT));
    if !base.is_absolute() {
        return Err(Error::Usage(format!(
            "root {} is not absolute",
            base.display()
        )));
    }
    Ok(base.join(namespace.as_str()))
}

fn lxcfs(options: &Options) -> Lxcfs {
    let usual = Lxcfs::default();
    Lxcfs {
        root: options.lxcfs_root.clone().unwrap_or(usual.root),
        is_optional: options.lxcfs_optional,
    }
}

fn components(options: &Options) -> Components {
    let usual = Components::default();
    Components {
        root: options.components_root.clone().unwrap_or(usual.root),
        always: options.components.clone(),
        hooks_root: options.hooks_root.clone().unwrap_or(usual.hooks_root),
    }
}

/// Removes the folder of a containerd namespace once no container is in it.
fn forget_namespace(root: &Path) {
    // Not empty, or gone already: both are as they should be.
    let _in_use = std::fs::remove_dir(root);
}

/// The descriptors of a request, lent.
fn stdio(io: &ProcessIo) -> Stdio<'_> {
    match io {
        ProcessIo::Streams {
            stdin,
            stdout,
            stderr,
        } => Stdio::Streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]),
        ProcessIo::Terminal => Stdio::Terminal,
    }
}

/// The same words in CRIU's terms.
fn criu_options(request: &CheckpointRequest) -> std::result::Result<CriuOptions, Error> {
    if let Some(other) = request
        .empty_namespaces
        .iter()
        .find(|kind| *kind != "network")
    {
        return Err(Error::Usage(format!(
            "namespace {other:?} is not supported"
        )));
    }
    let mode = match request.cgroups_mode.as_str() {
        "" => None,
        mode => Some(CgroupsMode::from_str(mode, true).map_err(Error::Usage)?),
    };
    Ok(CriuOptions {
        tcp_established: Some(request.open_tcp),
        ext_unix_sk: Some(request.external_unix_sockets),
        shell_job: Some(request.terminal),
        file_locks: Some(request.file_locks),
        manage_cgroups_mode: mode.map(|mode| mode as i32),
        ..CriuOptions::default()
    })
}

impl Runtime for RunLxc {
    type Container = Shimmed;

    fn identity(&self) -> Identity {
        Identity {
            name: "io.containerd.runlxc.v2",
            version: crate::VERSION,
            revision: crate::REVISION,
        }
    }

    fn create(&self, request: CreateRequest) -> Result<(Shimmed, Created)> {
        let host = self.host()?;
        let options = &request.options;
        let made = create::create(
            host,
            &create::Request {
                root: &root(&request.namespace, options)?,
                id: &ContainerId::parse(&request.id)?,
                bundle: &Bundle::load(&request.bundle).map_err(Error::from)?,
                stdio: stdio(&request.io),
                inherited_fds: 0,
                more_env: Vec::new(),
                new_keyring: if options.no_new_keyring {
                    Toggle::Off
                } else {
                    Toggle::On
                },
                root_entry: if options.no_pivot_root {
                    RootEntry::MoveChroot
                } else {
                    RootEntry::Pivot
                },
                parent: Parent::Us,
                lxcfs: lxcfs(options),
                components: components(options),
                hardening_optional: hardening_optional(options.hardening_optional)?,
                cgroup_manager: if options.systemd_cgroup {
                    CgroupManager::Systemd
                } else {
                    CgroupManager::Cgroupfs
                },
            },
        )?;
        let pid = made.container.pid();
        if let Some(init) = made.init {
            init.watch()?;
        }
        let shimmed = Shimmed::new(made.container, host, &self.views);
        shimmed.watch_view();
        Ok((
            shimmed,
            Created {
                pid,
                terminal: made.terminal,
            },
        ))
    }

    fn delete_from_disk(&self, request: DeleteRequest<'_>) -> Result<()> {
        let deadline = Instant::now() + END_FROM_DISK_MAX;
        let id = ContainerId::parse(request.id)?;
        let root = root(request.namespace, request.options)?;
        delete::delete_by(&root, &id, Running::Kill, Some(deadline))?;
        forget_namespace(&root);
        Ok(())
    }

    fn features(&self, _options: &Options) -> Result<Features> {
        let document = features::document(self.host()?);
        Ok(Features {
            json: document.to_string(),
            annotations: Vec::new(),
        })
    }
}

/// A container, and what its shim keeps at hand for it.
#[derive(Debug)]
pub struct Shimmed {
    container: Container,
    facts: HostFacts,
    /// The container's filter, from the first exec on.
    seccomp: OnceLock<Option<SeccompFilter>>,
    oom: Mutex<Option<OomWatch>>,
    views: Watch,
    /// Held by whoever runs what a rich container has for its end, or waits for that.
    ending: Mutex<()>,
}

impl Shimmed {
    fn new(container: Container, host: &Host, views: &Watch) -> Self {
        Self {
            facts: HostFacts {
                hardening_optional: container.journal().hardening_optional(),
                ..host.facts
            },
            seccomp: OnceLock::new(),
            oom: Mutex::new(None),
            views: views.clone(),
            ending: Mutex::new(()),
            container,
        }
    }

    /// The container keeps its view when lxcfs is killed and comes back.
    fn watch_view(&self) {
        let journal = self.container.journal();
        let (Some(view), Some(init)) = (&journal.view, journal.init) else {
            return;
        };
        if let Err(error) = self.views.add(&journal.id, init, view) {
            let (container, error) = (journal.id.as_str(), error.chain());
            tracing::warn!(
                container,
                error,
                "its view ends with the lxcfs that is there now"
            );
        }
    }

    /// The pid may have been another's since the exec ended: only what is in the container counts.
    fn signal_exec(&self, pid: i32, signal: i32) -> std::result::Result<(), Error> {
        let process = ProcessId::of(pid)?;
        if !self.container.cgroup().procs()?.contains(&process.as_pid()) {
            return Err(Error::NotRunning);
        }
        process.signal(signal)
    }

    fn seccomp(&self) -> std::result::Result<Option<SeccompFilter>, Error> {
        if let Some(filter) = self.seccomp.get() {
            return Ok(filter.clone());
        }
        let filter = self.container.dir.read_filter()?;
        Ok(self.seccomp.get_or_init(|| filter).clone())
    }

    fn process(&self, json: &[u8]) -> std::result::Result<launch::plan::Process, Error> {
        let parsed = bundle::parse_process(json)?;
        let context = ProcessContext {
            host: self.facts,
            preserve_fds: 0,
            new_keyring: Toggle::Off,
            seccomp: self.seccomp()?,
            capabilities: self.container.journal().capabilities,
            labels: self.container.journal().labels.clone(),
            scheduling: self.container.journal().scheduling.clone(),
        };
        let planned = bundle::process_plan(&parsed.value, &context)?;
        let id = &self.container.journal().id;
        create::log(id, &parsed.warnings, &[]);
        create::log(id, &planned.warnings, &planned.notes);
        bundle::capabilities::check_inheritable(&planned.value)?;
        Ok(planned.value)
    }
}

impl shim_core::Container for Shimmed {
    fn start(&self) -> Result<()> {
        Ok(self.container.start()?)
    }

    fn exec(&self, request: ExecRequest) -> Result<Started> {
        let prepared = self.container.exec(&exec::Request {
            process: self.process(&request.process_json)?,
            stdio: stdio(&request.io),
            paused: Paused::Refuse,
        })?;
        let (child, terminal) = prepared.start()?;
        Ok(Started {
            pid: child.watch()?.as_raw(),
            terminal,
        })
    }

    fn signal(&self, target: SignalTarget, signal: i32) -> Result<()> {
        match target {
            SignalTarget::Init => self.container.kill(signal)?,
            SignalTarget::All => self.container.kill_all(signal)?,
            SignalTarget::Exec { pid, .. } => self.signal_exec(pid, signal)?,
        }
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        Ok(self.container.pause()?)
    }

    fn resume(&self) -> Result<()> {
        Ok(self.container.resume()?)
    }

    fn update(&self, request: &UpdateRequest) -> Result<()> {
        let (json, annotations) = (&request.resources_json, &request.annotations);
        Ok(self.container.update(json, annotations)?)
    }

    fn pids(&self) -> Result<Vec<i32>> {
        let pids = self.container.cgroup().procs().map_err(Error::from)?;
        Ok(pids.into_iter().map(sys::Pid::as_raw).collect())
    }

    fn stats(&self) -> Result<Stats> {
        Ok(self.container.cgroup().stats().map_err(Error::from)?)
    }

    fn oom_descriptor(&self) -> Result<Option<OwnedFd>> {
        let watch = self.container.cgroup().oom_watch().map_err(Error::from)?;
        let fd = watch
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::io("duplicate a descriptor"))?;
        *self.oom.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        Ok(Some(fd))
    }

    fn take_oom(&self) -> Result<u64> {
        let mut oom = self.oom.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watch) = oom.as_mut() else {
            return Err(ShimError::new(
                Code::FailedPrecondition,
                "nobody watches for OOM kills",
            ));
        };
        let mut count = 0;
        loop {
            match watch.take().map_err(Error::from)? {
                OomNews::OutOfMemory => count += 1,
                OomNews::Gone if count == 0 => {
                    return Err(ShimError::new(Code::NotFound, "the cgroup is gone"));
                }
                OomNews::Nothing | OomNews::Gone => return Ok(count),
            }
        }
    }

    fn checkpoint(&self, request: &CheckpointRequest) -> Result<()> {
        let own = self.container.journal().bundle.join(CRIU_WORK);
        let work = request.work.as_deref().unwrap_or(&own);
        self.container.checkpoint(checkpoint::Request {
            images: &request.images,
            work: Some(work),
            parent: None,
            part: Part::Whole,
            afterwards: if request.exit {
                Afterwards::End
            } else {
                Afterwards::Run
            },
            options: criu_options(request)?,
            status: None,
            limit: request.limit,
        })?;
        if request.work.is_none()
            && let Err(error) = std::fs::remove_dir_all(&own)
        {
            tracing::warn!(path = %own.display(), %error, "cannot be removed");
        }
        Ok(())
    }

    fn init_exited(&self) -> Result<()> {
        if self.container.journal().pid_namespace == PidNamespace::Shared {
            self.container.kill_all(sys::Signal::SIGKILL as i32)?;
        }
        let _ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.container.poststop() {
            let (container, error) = (&self.container.journal().id, error.chain());
            tracing::warn!(%container, error, "what its poststop hook ran in is not all gone yet");
        }
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        self.views.remove(&self.container.journal().id);
        let _ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        self.container.delete()?;
        if let Some(root) = self.container.dir.path().parent() {
            forget_namespace(root);
        }
        Ok(())
    }
}
