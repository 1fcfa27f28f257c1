//! runv behind a shim: shim-core's `Runtime` over this crate's blocking parts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bundle::{Bundle, HostFacts, Plan, PlanContext, Status, Template, View};
use cgroups::{Cgroup, CgroupPaths, Hierarchies};
use guest::call::Disk;
use launch::hooks::{self, Stage};
use launch::image_init::style::Style;
use launch::plan::{CgroupView, PidOne, RootEntry, Toggle};
use shim_core::runtime::Result;
use shim_core::{
    CreateRequest, Created, DeleteRequest, Features, Identity, Options, Runtime, SandboxRequest,
};
use sys::TimeStampCounter;

use crate::contained::{Brought, Contained, Part, Parts, QUICK_LIMIT, poststop};
use crate::home::Home;
use crate::image::{Image, Name};
use crate::journal::{Journal, StateDir};
use crate::machine::{Machine, next_pid};
use crate::pod::{Kind, Place, Plugged, Sandbox};
use crate::qemu::{self, Arguments, Facts, Volumes, Wires};
use crate::sharing::{Asked, Sharing};
use crate::size::{self, Limits, Size};
use crate::template::{self, Key, Kind as TemplateKind, Places};
use crate::volumes::{DIRECTORY_BYTES_MAX, Directory};
use crate::{Error, links, pod_config, rootfs, specification};

/// State root of the shim; a folder for each of containerd's namespaces is below it.
pub(crate) const ROOT: &str = "/run/containerd/runv";

/// The runtime.
#[derive(Debug)]
pub struct RunV {
    /// Watched while a shim begins, so that no create waits for it.
    counter: Option<TimeStampCounter>,
    /// Machines of pods, by the ids of their sandboxes.
    sandboxes: Mutex<BTreeMap<String, Weak<Sandbox>>>,
}

impl Default for RunV {
    fn default() -> Self {
        Self {
            counter: TimeStampCounter::watch(),
            sandboxes: Mutex::default(),
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
    /// The guest image, when it asks for one.
    guest: Option<Name>,
    template: Template,
    /// Of a machine of its own.
    size: Size,
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
        // But nobody on the host can answer for calls of a guest.
        host.seccomp_flags &= !bundle::NEW_LISTENER;
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
        if plan.init.root.entry == RootEntry::Chroot {
            let why = "a virtual machine shares none";
            return Err(Error::unsupported("a mount namespace of others", why));
        }
        if plan.view != View::Host {
            let what = format!("annotations.{}", bundle::view::VIEW);
            let why = "a virtual machine shows its own resources";
            return Err(Error::unsupported(what, why));
        }
        if plan.priority.is_some() {
            let what = format!("annotations.{}", bundle::priority::PRIORITY);
            let why = "virtual machines have none yet";
            return Err(Error::unsupported(what, why));
        }
        let traffic = bundle::Traffic::of(&plan.annotations)?;
        if !traffic.is_none() {
            let why = "virtual machines have no limits of their network yet";
            return Err(Error::unsupported(traffic.field(), why));
        }
        if plan.init.pid_one != PidOne::Program {
            let why = "a virtual machine has no rich containers";
            return Err(Error::unsupported("a rich container", why));
        }
        let config = serde_json::from_slice(&text).map_err(|error| Error::Journal {
            path: bundle.join(bundle::names::CONFIG),
            why: error.to_string(),
        })?;
        let guest = plan.annotations.get(bundle::annotations::GUEST);
        let guest = guest.map(|name| name.parse().map_err(|error| of_guest(&error)));
        Ok(Self {
            size: size::size(&config, size::host_processors())?,
            config,
            guest: guest.transpose()?,
            cgroup,
            template: Template::of(&plan.annotations)?,
            plan,
        })
    }
}

/// An error of the annotation that names a guest.
fn of_guest(error: &Error) -> Error {
    let what = bundle::annotations::GUEST;
    Error::Usage(format!("annotations.{what}: {error}"))
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
        if request.options.systemd_cgroup {
            let why = "runtime option SystemdCgroup is not supported by this runtime";
            return Err(Error::Usage(why.into()).into());
        }
        let mut wanted = Wanted::load(&request.bundle, &request.id)?;
        let kind = Kind::of(&wanted.config)?;
        let network = links::Wanted::of(&wanted.plan)?;
        let joined = match &kind {
            Kind::Member(sandbox) => {
                Some(self.sandbox(sandbox, &network, wanted.guest.as_ref())?)
            }
            Kind::Alone | Kind::Sandbox => None,
        };
        let place = match (&joined, &kind) {
            (Some(sandbox), _) => sandbox.member(),
            (None, Kind::Sandbox) => Place::Sandbox,
            (None, _) => Place::Alone,
        };
        let asked = Asked::of(&wanted.config)?;
        let sharing = match &joined {
            Some(sandbox) => sandbox.sharing().member(asked)?,
            None if kind == Kind::Sandbox => Sharing::pod(asked)?,
            None => Sharing::alone(asked, &wanted.config)?,
        };
        if let Some(files) = joined.as_ref().and_then(|it| it.files.as_ref()) {
            pod_config::complete(&mut wanted.config, files);
        }
        let guest = specification::for_guest(&request.id, &wanted.config, place, sharing)?;
        let wants_volumes = kind == Kind::Sandbox || !guest.volumes.shared.is_empty();
        let volumes = match wants_volumes && sharing == Sharing::Live {
            true => Volumes::Shared,
            false => Volumes::None,
        };
        let room = match joined {
            Some(sandbox) => Room::Of(sandbox),
            None => {
                let guest = wanted.guest.clone().unwrap_or_default();
                let image = Image::find(&Home::find()?, &guest)?;
                Room::New(network, volumes, image)
            }
        };
        let dir = StateDir::create(&root(&request.namespace, &request.options)?, &request.id)?;
        let id = request.id.clone();
        let of_sandbox = match &room {
            // There containerd has `delete` called for the sandbox only.
            Room::Of(sandbox) if sandbox.files.is_some() => Some(sandbox.dir.clone()),
            Room::Of(_) | Room::New(..) => None,
        };
        let linked = of_sandbox.iter().try_for_each(|it| it.link(&dir));
        let made = linked.and_then(|()| self.make(request, (wanted, room), guest, &dir));
        let (contained, created) = made.inspect_err(|_| undo(&dir, of_sandbox.as_ref()))?;
        if kind == Kind::Sandbox {
            self.sandboxes()
                .insert(id, Arc::downgrade(contained.sandbox()));
        }
        Ok((contained, created))
    }

    fn sandbox(&self, request: &SandboxRequest) -> Result<()> {
        Ok(pod_config::write(request)?)
    }

    fn delete_from_disk(&self, request: DeleteRequest<'_>) -> Result<()> {
        let root = root(request.namespace, request.options)?;
        for journal in StateDir::at(&root, request.id).undo_pod()? {
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

/// Where a container is going to be.
enum Room {
    /// In a machine that is made for it of this guest, with the links of this namespace.
    New(links::Wanted, Volumes, Image),
    /// In this one.
    Of(Arc<Sandbox>),
}

/// After an error, which is the one to tell; of a sandbox that has a link to it.
fn undo(dir: &StateDir, of_sandbox: Option<&StateDir>) {
    let undone = dir.undo();
    let unlinked = of_sandbox.map_or(Ok(()), |it| it.unlink(dir));
    match undone.and_then(|undone| unlinked.map(|()| undone)) {
        Ok(None) => {}
        // Those of the other stages may have run.
        Ok(Some(journal)) => poststop(&journal.hooks_poststop, &journal.state_stopped),
        Err(left) => {
            let error = left.chain();
            tracing::warn!(path = %dir.path().display(), error, "not everything could be undone");
        }
    }
}

/// Brings directories of the host into a machine, on disks of their own.
fn plug(
    directories: Vec<Directory>,
    sandbox: &Arc<Sandbox>,
    dir: &StateDir,
    disks: &mut Vec<Plugged>,
) -> std::result::Result<Vec<guest::call::Directory>, Error> {
    let plug = |(number, directory): (usize, Directory)| match directory {
        Directory::Memory(memory) => Ok(memory),
        Directory::Copy(path) => {
            let name = format!("directory{number}");
            let disk = rootfs::copy(&path, dir.path(), &name, DIRECTORY_BYTES_MAX)?;
            let plugged = sandbox.plug(&disk)?;
            let disk = Disk(plugged.unit);
            disks.push(plugged);
            Ok(guest::call::Directory::Disk(disk))
        }
    };
    directories.into_iter().enumerate().map(plug).collect()
}

/// A machine that goes on from a template, or boots where there is none, so that there is one for the next.
fn quickest(
    arguments: &Arguments,
    wires: Wires,
    cgroup: &Cgroup,
    dir: &StateDir,
) -> std::result::Result<Machine, Error> {
    let home = Home::find()?;
    let kind = TemplateKind::of(arguments).filter(|_| !arguments.needs_shared_memory());
    let Some(kind) = kind else {
        return Machine::boot(arguments, wires, cgroup, dir);
    };
    let (places, key) = (Places::of(&home), Key::of(arguments, &qemu::find()?)?);
    if let Some(template) = template::take(&places, &key) {
        let restored = Machine::restore(arguments, wires.duplicate()?, &template, (cgroup, dir));
        match restored {
            Ok(machine) => {
                tracing::debug!(template = %key, "a machine goes on from a template");
                return Ok(machine);
            }
            Err(error) => {
                let error = error.chain();
                tracing::warn!(template = %key, error, "no machine goes on from this template: it is thrown away");
                template.refuse(&error);
            }
        }
    }
    let machine = Machine::boot(arguments, wires, cgroup, dir)?;
    tracing::info!(template = %key, "a machine has booted: there was no template");
    if let Err(error) = template::make_later(&places, &home, (&key, &kind)) {
        tracing::warn!(template = %key, error = error.chain(), "no template is made");
    }
    Ok(machine)
}

impl RunV {
    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, Weak<Sandbox>>> {
        // No code panics while it holds the lock.
        let mut sandboxes = self
            .sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sandboxes.retain(|_, sandbox| sandbox.strong_count() > 0);
        sandboxes
    }

    /// The sandbox of that id, for a container that wants this network, and this guest if one.
    fn sandbox(
        &self,
        id: &str,
        network: &links::Wanted,
        guest: Option<&Name>,
    ) -> std::result::Result<Arc<Sandbox>, Error> {
        let sandbox = self.sandboxes().get(id).and_then(Weak::upgrade);
        let sandbox = sandbox.ok_or_else(|| Error::NoSandbox(id.to_owned()))?;
        if let Some(other) = guest.filter(|guest| **guest != sandbox.guest) {
            let own = &sandbox.guest;
            let why = format!("{other} is not {own}, the guest of its pod");
            return Err(of_guest(&Error::Usage(why)));
        }
        if network.identity()? == Some(sandbox.network) {
            return Ok(sandbox);
        }
        let why = "a container of a pod has the network of its sandbox";
        Err(Error::unsupported("linux.namespaces: network", why))
    }

    /// Makes a container; on an error its machine has ended if it was its own, and `dir` is left to be
    /// undone.
    fn make(
        &self,
        request: CreateRequest,
        (wanted, room): (Wanted, Room),
        guest: specification::Guest,
        dir: &StateDir,
    ) -> std::result::Result<(Contained, Created), Error> {
        let plan = &wanted.plan;
        let disk = rootfs::disk(Path::new(&plan.init.root.path), &Home::find()?, dir.path())?;
        let cgroup = match &room {
            Room::New(..) => Some(wanted.cgroup.clone()),
            Room::Of(_) => None,
        };
        let state_stopped = plan.state(Status::Stopped, 0);
        let mut journal = Journal::new(cgroup, plan.hooks_poststop.clone(), state_stopped);
        dir.write(&journal)?;
        let (part, pid) = match room {
            Room::New(network, volumes, image) => {
                let guest = image.name.clone();
                let parts = (network, volumes, image);
                let (machine, cgroup, network) =
                    self.machine(&wanted, parts, (&mut journal, dir))?;
                let pid = machine.pid;
                let of = (request.id.clone(), dir.clone());
                let mut sandbox = Sandbox::new(of, machine, network, guest);
                sandbox.files = pod_config::files(&request.bundle);
                (Part::Owner(Arc::new(sandbox), cgroup), pid)
            }
            Room::Of(sandbox) => {
                let state = plan.state(Status::Creating, sandbox.machine.pid);
                hooks::run_all(&plan.hooks_prestart, &state, Stage::Prestart)?;
                hooks::run_all(&plan.hooks_create_runtime, &state, Stage::CreateRuntime)?;
                (Part::Member(sandbox), next_pid())
            }
        };
        let plugged = part.sandbox().plug(&disk)?;
        let root = Disk(plugged.unit);
        let mut brought = Brought {
            disks: vec![plugged],
            ..Brought::default()
        };
        let volumes = guest.volumes;
        for volume in &volumes.shared {
            brought.volumes.push(part.sandbox().share(volume)?);
        }
        let parts = Parts {
            config: guest.config,
            root,
            files: volumes.files,
            directories: plug(volumes.directories, part.sandbox(), dir, &mut brought.disks)?,
            volumes: volumes.shared.into_iter().map(|it| it.name).collect(),
        };
        let contained = Contained {
            state_running: plan.state(Status::Running, pid),
            hooks_poststart: wanted.plan.hooks_poststart,
            id: request.id,
            dir: dir.clone(),
            pid,
            part,
            limits: Mutex::new(Limits::of(&wanted.config["linux"]["resources"])),
            brought: Mutex::new(brought),
            journal,
        };
        let terminal = contained.create(parts, request.io)?;
        Ok((contained, Created { pid, terminal }))
    }

    /// Makes a machine for a container.
    fn machine(
        &self,
        wanted: &Wanted,
        (network, volumes, image): (links::Wanted, Volumes, Image),
        (journal, dir): (&mut Journal, &StateDir),
    ) -> std::result::Result<(Machine, Cgroup, network::Identity), Error> {
        let plan = &wanted.plan;
        let held = network.hold()?;
        // There is no process of the container yet; the thread has its network namespace, for which
        // these hooks are there.
        let state = plan.state(Status::Creating, held.thread_id());
        hooks::run_all(&plan.hooks_prestart, &state, Stage::Prestart)?;
        hooks::run_all(&plan.hooks_create_runtime, &state, Stage::CreateRuntime)?;
        let found = links::read(held.namespace())?;
        journal.links = network.journalled(held.namespace(), &found);
        if journal.links.is_some() {
            dir.write(journal)?;
        }
        let tied = links::tie(held.namespace(), &found);
        // Somebody else's may be there, which is not for `delete`.
        if tied.is_err() && journal.links.take().is_some() {
            dir.write(journal)?;
        }
        let wires = Wires {
            namespace: held.namespace().descriptor()?,
            taps: tied?.taps,
        };
        let size = wanted.size;
        let links = found.network.links.len();
        let arguments = Arguments {
            volumes,
            console: dir.console(),
            ..template::machine(image, size, links, self.counter)
        };
        let cgroup = Cgroup::create_at(wanted.cgroup.clone())?;
        journal.is_cgroup_own = true;
        dir.write(journal)?;
        match cgroup.apply(&size.on_host()) {
            // A host that accounts for no memory limits none.
            Ok(()) | Err(cgroups::Error::NoController { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let machine = match wanted.template {
            Template::Never => Machine::boot(&arguments, wires, &cgroup, dir)?,
            Template::Auto => quickest(&arguments, wires, &cgroup, dir)?,
        };
        let sysctl = plan.init.sysctl.iter();
        let sysctl = sysctl.filter(|(name, _)| specification::is_of_network(name));
        let sysctl = sysctl.cloned().collect();
        machine.agent.connect(found.network, sysctl, QUICK_LIMIT)?;
        Ok((machine, cgroup, held.namespace().identity()))
    }
}
