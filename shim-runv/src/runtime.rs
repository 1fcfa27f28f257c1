//! runv behind a shim: shim-core's two traits over this crate's blocking parts.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bundle::{Bundle, HostFacts, Plan, PlanContext, Status, View};
use cgroups::{Cgroup, CgroupPaths, Hierarchies, Stats};
use guest::call::{Answer, Call, Create, Exec, Process, Size, Target};
use launch::hooks::{self, Stage};
use launch::image_init::style::Style;
use launch::plan::{CgroupView, Hook, PidOne, RootEntry, Toggle};
use shim_core::runtime::Result;
use shim_core::{
    Code, CreateRequest, Created, DeleteRequest, ExecRequest, Features, Identity, Options,
    ProcessIo, Runtime, ShimError, SignalTarget, Started, WindowSize,
};
use sys::TimeStampCounter;

use crate::home::Home;
use crate::image::Image;
use crate::journal::{Journal, StateDir};
use crate::machine::{Machine, Wires, next_pid};
use crate::qemu::{Arguments, Facts};
use crate::{Error, links, rootfs, specification, streams};

/// State root of the shim; a folder for each of containerd's namespaces is below it.
const ROOT: &str = "/run/containerd/runv";

/// Serial number of the disk with the root file system.
const DISK: &str = "root";

/// What a guest may take for setting a container up, and for a process that joins.
const SET_UP_LIMIT: Duration = Duration::from_secs(60);

/// What it may take for anything quick.
const QUICK_LIMIT: Duration = Duration::from_secs(20);

/// Output that readers leave untaken holds a container's end up for so long.
const DELETE_LIMIT: Duration = Duration::from_secs(10);

/// The runtime.
#[derive(Debug)]
pub struct RunV {
    /// Watched while a shim begins, so that no create waits for it.
    counter: Option<TimeStampCounter>,
}

impl Default for RunV {
    fn default() -> Self {
        Self {
            counter: TimeStampCounter::watch(),
        }
    }
}

fn root(namespace: &str, options: &Options) -> std::result::Result<PathBuf, Error> {
    let base = options.root.as_deref().unwrap_or(Path::new(ROOT));
    if !base.is_absolute() {
        let base = base.display();
        return Err(Error::Usage(format!("root {base} is not absolute")));
    }
    Ok(base.join(namespace))
}

/// A container as its bundle asks for it: everything that is for the host's side.
struct Wanted {
    config: serde_json::Value,
    plan: Plan,
    cgroup: CgroupPaths,
}

impl Wanted {
    fn load(bundle: &Path, id: &str) -> std::result::Result<Self, Error> {
        let (loaded, text) = Bundle::load_with_text(bundle)?;
        let path = loaded.cgroups_path().unwrap_or_else(|| id.to_owned());
        let cgroup = CgroupPaths::new(&Hierarchies::at_host()?, &path)?;
        let mut host = HostFacts::read(Path::new("/"));
        // The guest judges by its own kernel; here nothing of it is in the way.
        host.seccomp_filter = Toggle::On;
        host.seccomp_flags = u32::MAX;
        let plan = loaded.plan(&PlanContext {
            id: id.to_owned(),
            // The guest has its own; here it is only checked.
            cgroup_view: CgroupView::Unified { own: String::new() },
            host,
            preserve_fds: 0,
            new_keyring: Toggle::On,
            root_entry: RootEntry::Pivot,
            init_of: |_| Style::Other,
        })?;
        if plan.view != View::Host {
            let what = format!("annotations.{}", bundle::view::VIEW);
            let why = "a virtual machine shows its own resources";
            return Err(Error::unsupported(what, why));
        }
        if plan.init.pid_one != PidOne::Program {
            let why = "a virtual machine has no rich containers";
            return Err(Error::unsupported("a rich container", why));
        }
        let config = serde_json::from_slice(&text).map_err(|error| Error::Journal {
            path: bundle.join(bundle::names::CONFIG),
            why: error.to_string(),
        })?;
        Ok(Self {
            config,
            plan,
            cgroup,
        })
    }
}

impl Runtime for RunV {
    type Container = Contained;

    fn identity(&self) -> Identity {
        Identity {
            name: "io.containerd.runv.v2",
            version: crate::VERSION,
            revision: crate::REVISION,
        }
    }

    fn create(&self, request: CreateRequest) -> Result<(Contained, Created)> {
        let wanted = Wanted::load(&request.bundle, &request.id)?;
        let network = links::Wanted::of(&wanted.plan)?;
        let guest = specification::for_guest(&request.id, &wanted.config)?;
        let dir = StateDir::create(&root(&request.namespace, &request.options)?, &request.id)?;
        self.make(request, (wanted, network), guest, &dir).map_err(|error| {
            match dir.undo() {
                Ok(None) => {}
                // Those of the other stages may have run.
                Ok(Some(journal)) => poststop(&journal.hooks_poststop, &journal.state_stopped),
                Err(left) => {
                    let error = left.chain();
                    tracing::warn!(path = %dir.path().display(), error, "not everything could be undone");
                }
            }
            error.into()
        })
    }

    fn delete_from_disk(&self, request: DeleteRequest<'_>) -> Result<()> {
        let root = root(request.namespace, request.options)?;
        if let Some(journal) = StateDir::at(&root, request.id).undo()? {
            poststop(&journal.hooks_poststop, &journal.state_stopped);
        }
        Ok(())
    }

    fn features(&self, _options: &Options) -> Result<Features> {
        let document = serde_json::json!({
            "ociVersionMin": "1.0.0",
            "ociVersionMax": "1.1.0",
            "hooks": ["prestart", "createRuntime", "startContainer", "poststart", "poststop"],
            "linux": {
                "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
                "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false},
                "seccomp": {"enabled": true},
                "apparmor": {"enabled": false},
                "selinux": {"enabled": false},
            },
        });
        let accelerator = Facts::read(Path::new("/")).to_string();
        Ok(Features {
            json: document.to_string(),
            annotations: vec![("org.pouch.runv.accelerator".to_owned(), accelerator)],
        })
    }
}

impl RunV {
    /// Makes a container; on an error its machine has ended, and `dir` is left to be undone.
    fn make(
        &self,
        request: CreateRequest,
        (wanted, network): (Wanted, links::Wanted),
        guest: specification::Guest,
        dir: &StateDir,
    ) -> std::result::Result<(Contained, Created), Error> {
        let Wanted {
            config,
            plan,
            cgroup,
        } = wanted;
        let home = Home::find()?;
        let image = Image::find(&home)?;
        let disk = rootfs::disk(Path::new(&plan.init.root.path), &home, dir.path())?;
        let state_stopped = plan.state(Status::Stopped, 0);
        let mut journal = Journal::new(cgroup, plan.hooks_poststop.clone(), state_stopped);
        dir.write(&journal)?;
        let held = network.hold()?;
        // There is no process of the container yet; the thread has its network namespace, for which
        // these hooks are there.
        let state = plan.state(Status::Creating, held.thread_id());
        hooks::run_all(&plan.hooks_prestart, &state, Stage::Prestart)?;
        hooks::run_all(&plan.hooks_create_runtime, &state, Stage::CreateRuntime)?;
        let found = links::read(held.namespace())?;
        journal.links = network.journalled(held.namespace(), &found);
        dir.write(&journal)?;
        let tied = links::tie(held.namespace(), &found);
        if tied.is_err() {
            // Somebody else's may be there, which is not for `delete`.
            journal.links = None;
            dir.write(&journal)?;
        }
        let wires = Wires {
            namespace: held.namespace().descriptor()?,
            taps: tied?.taps,
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let size = specification::size(&config, u32::try_from(processors).unwrap_or(1));
        let arguments = Arguments {
            image,
            accelerator: Facts::read(Path::new("/")).accelerator(),
            memory_mib: size.memory_mib,
            processors: size.processors,
            tsc_khz: self.counter.and_then(TimeStampCounter::khz),
            disk: (disk, DISK.to_owned()),
            links: found.network.links.iter().map(|link| link.mac).collect(),
            console: dir.console(),
        };
        let cgroup = Cgroup::create_at(journal.cgroup.clone())?;
        let machine = Machine::start(&arguments, wires, &cgroup, dir)?;
        let sysctl = plan.init.sysctl.iter();
        let sysctl = sysctl.filter(|(name, _)| specification::is_of_network(name));
        let sysctl = sysctl.cloned().collect();
        machine.agent.connect(found.network, sysctl, QUICK_LIMIT)?;
        let pid = machine.pid;
        let contained = Contained {
            state_running: plan.state(Status::Running, pid),
            hooks_poststart: plan.hooks_poststart,
            id: request.id,
            dir: dir.clone(),
            cgroup,
            machine,
            journal,
        };
        let terminal = contained.create(guest, request.io)?;
        Ok((contained, Created { pid, terminal }))
    }
}

fn poststop(hooks: &[Hook], state: &str) {
    // The container is gone whatever they say (runtime-spec, Lifecycle).
    if let Err(error) = hooks::run_all(hooks, state, Stage::Poststop) {
        tracing::warn!(error = shim_core::chain(&error), "a hook failed");
    }
}

/// A container in its machine.
#[derive(Debug)]
pub struct Contained {
    id: String,
    dir: StateDir,
    cgroup: Cgroup,
    machine: Machine,
    journal: Journal,
    hooks_poststart: Vec<Hook>,
    state_running: String,
}

impl Contained {
    fn init(&self) -> Process {
        Process {
            container: self.id.clone(),
            exec: None,
        }
    }

    fn create(
        &self,
        guest: specification::Guest,
        io: ProcessIo,
    ) -> std::result::Result<Option<OwnedFd>, Error> {
        let (streams, terminal) = streams::open(io, &self.machine.agent)?;
        let io = streams.io;
        self.machine
            .processes
            .add(self.init(), self.machine.pid, Arc::new(streams));
        let call = Call::Create(Box::new(Create {
            id: self.id.clone(),
            config: guest.config,
            disk: DISK.to_owned(),
            files: guest.files,
            io,
        }));
        let what = "the making of the container";
        match self.machine.agent.ask(what, call, SET_UP_LIMIT) {
            Ok(Answer::Pid(_)) => Ok(terminal),
            other => {
                // Its end is nobody's to know.
                self.machine.processes.remove(&self.init());
                other.and(Err(Error::Answer))
            }
        }
    }

    /// Whom a request of shim-core is about; none when there is no such process.
    fn process(&self, target: &SignalTarget) -> Option<Process> {
        match target {
            SignalTarget::Init | SignalTarget::All => Some(self.init()),
            SignalTarget::Exec { pid, .. } => self.machine.processes.find(*pid),
        }
    }

    /// Ends the machine, once all that its processes have written is here.
    fn end(&self) {
        let call = Call::Delete(self.id.clone());
        match self.machine.agent.tell("the removal", call, DELETE_LIMIT) {
            // Not running: it was ended before.
            Ok(()) | Err(Error::NotRunning) => {}
            Err(error) => tracing::warn!(error = error.chain(), "the guest is ended as it is"),
        }
        self.machine.end();
    }

    fn tell(&self, what: &'static str, call: Call) -> Result<()> {
        Ok(self.machine.agent.tell(what, call, QUICK_LIMIT)?)
    }
}

impl shim_core::Container for Contained {
    fn start(&self) -> Result<()> {
        let call = Call::Start(self.id.clone());
        let what = "the start of the program";
        self.machine.agent.tell(what, call, SET_UP_LIMIT)?;
        hooks::run_all(&self.hooks_poststart, &self.state_running, Stage::Poststart)
            .map_err(Error::from)?;
        Ok(())
    }

    fn exec(&self, request: ExecRequest) -> Result<Started> {
        let (streams, terminal) = streams::open(request.io, &self.machine.agent)?;
        let (io, pid) = (streams.io, next_pid());
        let process = Process {
            container: self.id.clone(),
            exec: Some(request.id.clone()),
        };
        let processes = &self.machine.processes;
        processes.add(process.clone(), pid, Arc::new(streams));
        let call = Call::Exec(Box::new(Exec {
            container: self.id.clone(),
            id: request.id,
            process: request.process_json,
            io,
        }));
        match self.machine.agent.ask("the exec", call, SET_UP_LIMIT) {
            Ok(Answer::Pid(_)) => Ok(Started { pid, terminal }),
            other => {
                processes.remove(&process);
                Err(other.err().unwrap_or(Error::Answer).into())
            }
        }
    }

    fn signal(&self, target: SignalTarget, signal: i32) -> Result<()> {
        let target = match target {
            SignalTarget::All => Target::All(self.id.clone()),
            one => Target::One(self.process(&one).ok_or(Error::NotRunning)?),
        };
        self.tell("a signal", Call::Signal { target, signal })
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
        if let Err(error) = self.machine.agent.post(Call::Resize { process, size }) {
            tracing::debug!(error = error.chain(), "a terminal keeps its size");
        }
    }

    fn pause(&self) -> Result<()> {
        self.tell("the pause", Call::Pause(self.id.clone()))
    }

    fn resume(&self) -> Result<()> {
        self.tell("the resume", Call::Resume(self.id.clone()))
    }

    fn update(&self, resources_json: &[u8]) -> Result<()> {
        let call = Call::Update {
            container: self.id.clone(),
            resources: resources_json.to_vec(),
        };
        self.tell("the update", call)
    }

    fn pids(&self) -> Result<Vec<i32>> {
        Ok(self.machine.processes.pids())
    }

    fn stats(&self) -> Result<Stats> {
        Ok(self.cgroup.stats().map_err(Error::from)?)
    }

    fn oom_descriptor(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    fn take_oom(&self) -> Result<u64> {
        let why = "OOM kills in a guest are not told";
        Err(ShimError::new(Code::Unimplemented, why))
    }

    fn init_exited(&self) -> Result<()> {
        self.end();
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        self.end();
        if self.dir.undo()?.is_some() {
            poststop(&self.journal.hooks_poststop, &self.journal.state_stopped);
        }
        Ok(())
    }
}
