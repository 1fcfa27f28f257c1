//! A container in the guest: its cgroup, its root, init and execs.

use std::collections::BTreeMap;
use std::fs::{self, File as OpenFile};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bundle::{Bundle, HostFacts, NamespaceKind, Plan, PlanContext, ProcessContext};
use cgroups::{Cgroup, CgroupPaths, Hierarchies};
use guest::call::{Create, File, NAMESPACES, Process, Written, container_path, file_path};
use launch::image_init::style::Style;
use launch::plan::{CgroupView, ExecPlan, JoinNamespace, RootEntry, SeccompFilter, Toggle};
use nix::sys::signal::Signal;
use sys::{Child, CloneFlags, Kernel, Pid};

use crate::error::{Error, Result};
use crate::oom::Oom;
use crate::process::{Copying, Mux, Pipes, Running};
use crate::rootfs::Rootfs;
use crate::stub::{self, Namespaces, Standing};

/// The cgroup above those of containers.
const CGROUPS: &str = "/containers";

/// A container that was made.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    folder: PathBuf,
    cgroup: Cgroup,
    /// Kills for memory in it.
    pub(crate) oom: Arc<Oom>,
    facts: HostFacts,
    seccomp: Option<SeccompFilter>,
    namespaces: Vec<NamespaceKind>,
    init: Pid,
    /// By exec; none: init. Those that ended too, until their output was copied.
    processes: Mutex<BTreeMap<Option<String>, Running>>,
    /// None once it is gone.
    rootfs: Mutex<Option<Rootfs>>,
}

/// What decides whether a field can be honoured.
fn facts() -> Result<HostFacts> {
    let kernel = Kernel::running().map_err(Error::io("uname"))?;
    let mut facts = HostFacts::read(Path::new("/"));
    if kernel.at_least(3, 5) {
        facts.seccomp_filter = Toggle::On;
    }
    // SECCOMP_FILTER_FLAG_LOG (4.14) and SECCOMP_FILTER_FLAG_SPEC_ALLOW (4.17).
    if kernel.at_least(4, 17) {
        facts.seccomp_flags = 2 | 4;
    }
    Ok(facts)
}

fn write_files(folder: &Path, id: &str, files: &[File]) -> Result<()> {
    let directory = folder.join("files");
    fs::create_dir(&directory).map_err(Error::on("create", &directory))?;
    for (number, file) in files.iter().enumerate() {
        let path = PathBuf::from(file_path(id, number));
        fs::write(&path, &file.contents).map_err(Error::on("write", &path))?;
        chown(&path, Some(file.uid), Some(file.gid)).map_err(Error::on("chown", &path))?;
        let mode = fs::Permissions::from_mode(file.mode & 0o7777);
        fs::set_permissions(&path, mode).map_err(Error::on("chmod", &path))?;
    }
    Ok(())
}

impl Container {
    /// Makes one whose init waits for the start.
    ///
    /// Its init is to be watched once the container is known.
    pub(crate) fn create(request: &Create, mux: Mux) -> Result<(Self, Child)> {
        let path = PathBuf::from(container_path(&request.id));
        let mut rootfs = Rootfs::mount(&path, request.disk)?;
        rootfs.add_directories(&request.directories)?;
        rootfs.add_volumes(&request.volumes)?;
        write_files(&path, &request.id, &request.files)?;
        let bundle = Bundle::parse(path.clone(), &request.config)?;
        let hierarchies = Hierarchies::at_host()?;
        let paths = CgroupPaths::new(&hierarchies, &format!("{CGROUPS}/{}", request.id))?;
        let facts = facts()?;
        let plan = bundle.plan(&context(&request.id, &paths, facts)?)?;
        let cgroup = Cgroup::create_at(paths)?;
        let made = Oom::watch(&cgroup)
            .and_then(|oom| Ok((oom, Self::bring_up(&plan, &cgroup, &path, mux)?)));
        let (oom, (standing, copying)) = made.inspect_err(|_| {
            // The first error is the one to tell.
            let _left = remove(&cgroup);
        })?;
        let child = standing.child;
        let init = child.pid();
        let pidfd = sys::process::pidfd_open(init).map_err(Error::io("open a pidfd of init"))?;
        let running = Running {
            pid: init,
            pidfd,
            copying,
            has_ended: false,
        };
        let container = Self {
            id: request.id.clone(),
            folder: path,
            cgroup,
            oom: Arc::new(oom),
            facts,
            seccomp: plan.init.process.seccomp.clone(),
            namespaces: plan.namespaces.iter().map(|it| it.kind).collect(),
            init,
            processes: Mutex::new(BTreeMap::from([(None, running)])),
            rootfs: Mutex::new(Some(rootfs)),
        };
        Ok((container, child))
    }

    fn bring_up(
        plan: &Plan,
        cgroup: &Cgroup,
        folder: &Path,
        mux: Mux,
    ) -> Result<(Standing, Copying)> {
        cgroup.apply(&plan.resources)?;
        let process = &plan.init.process;
        let pipes = match process.terminal {
            Some(_) => None,
            None => Some(Pipes::make(process.uid, process.gid)?),
        };
        let (ours, theirs) = pipes.unzip();
        let socket = folder.join(bundle::names::START_SOCKET);
        let listener = UnixListener::bind(&socket).map_err(Error::on("bind", &socket))?;
        let standing = stub::init(namespaces(plan)?, theirs, listener)?;
        let pid = standing.child.pid();
        // For containers that join it.
        let link = folder.join(NAMESPACES);
        symlink(format!("/proc/{pid}/ns"), &link).map_err(Error::on("create", &link))?;
        cgroup.attach_unified(pid)?;
        let terminal = standing.set_up(plan.init_for(pid.as_raw()))?;
        Ok((standing, Copying::start(mux, ours, terminal)?))
    }

    /// Lets init become the program.
    pub(crate) fn start(&self) -> Result<()> {
        stub::start(&self.folder.join(bundle::names::START_SOCKET))
    }

    /// Runs a further process, which is to be watched.
    pub(crate) fn exec(&self, id: &str, process: &[u8], mux: Mux) -> Result<Child> {
        let parsed = bundle::parse_process(process)?;
        let context = ProcessContext {
            host: self.facts,
            preserve_fds: 0,
            new_keyring: Toggle::Off,
            seccomp: self.seccomp.clone(),
            capabilities: bundle::capabilities::NONE,
            labels: launch::plan::Labels::default(),
            scheduling: launch::plan::Scheduling::default(),
        };
        let process = bundle::process_plan(&parsed.value, &context)?.value;
        let pipes = match process.terminal {
            Some(_) => None,
            None => Some(Pipes::make(process.uid, process.gid)?),
        };
        let (ours, theirs) = pipes.unzip();
        let directory = self.cgroup.open_unified()?;
        let directory = directory.ok_or_else(|| Error::NotFound("cgroup version 2".to_owned()))?;
        let namespaces = self.joined();
        let standing = stub::exec(
            ExecPlan {
                namespaces,
                root: None,
                process,
            },
            theirs,
            &directory,
        )?;
        let terminal = standing.ready("the process that joins the container")?;
        let copying = Copying::start(mux, ours, terminal)?;
        let child = standing.start()?;
        let pid = child.pid();
        let pidfd = sys::process::pidfd_open(pid).map_err(Error::io("open a pidfd of an exec"))?;
        let running = Running {
            pid,
            pidfd,
            copying,
            has_ended: false,
        };
        let mut processes = self.lock();
        processes.retain(|exec, running| exec.is_none() || !running.is_over());
        processes.insert(Some(id.to_owned()), running);
        Ok(child)
    }

    fn joined(&self) -> Vec<JoinNamespace> {
        let kinds = self.namespaces.iter();
        kinds
            .map(|kind| JoinNamespace {
                flag: kind.clone_flag(),
                path: format!("/proc/{}/ns/{}", self.init, kind.proc_name()),
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<String>, Running>> {
        // No code panics while it holds the lock.
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with one of its processes.
    pub(crate) fn with<T>(
        &self,
        process: &Process,
        act: impl FnOnce(&Running) -> Result<T>,
    ) -> Result<T> {
        match self.lock().get(&process.exec) {
            Some(running) => act(running),
            None => Err(self.missing(process)),
        }
    }

    fn missing(&self, process: &Process) -> Error {
        let exec = process.exec.as_deref().unwrap_or("init");
        Error::NotFound(format!("process {exec} of {}", self.id))
    }

    /// One of its processes was reaped; says what it has written.
    pub(crate) fn ended(&self, process: &Process) -> Result<Written> {
        if process.exec.is_none() {
            // With a pid namespace of its own there is nobody left to kill.
            self.cgroup.kill_all(Signal::SIGKILL as i32)?;
        }
        let mut processes = self.lock();
        let running = processes.get_mut(&process.exec);
        let running = running.ok_or_else(|| self.missing(process))?;
        running.has_ended = true;
        running.copying.process_ended()
    }

    /// Its cgroup.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Kills what is left and removes it, then waits until all its output was taken.
    pub(crate) fn delete(&self) -> Result<()> {
        remove(&self.cgroup)?;
        // No code panics while it holds the lock.
        let mut rootfs = self.rootfs.lock().unwrap_or_else(PoisonError::into_inner);
        drop(rootfs.take());
        for (_, running) in std::mem::take(&mut *self.lock()) {
            running.copying.join();
        }
        Ok(())
    }
}

/// Ends all in a cgroup, and the cgroup.
fn remove(cgroup: &Cgroup) -> Result<()> {
    cgroup.kill_all(Signal::SIGKILL as i32)?;
    Ok(cgroup.delete()?)
}

/// Ends what there is of a container that is being made, so that who makes it need not wait.
pub(crate) fn kill_unmade(id: &str) -> Result<()> {
    let hierarchies = Hierarchies::at_host()?;
    let paths = CgroupPaths::new(&hierarchies, &format!("{CGROUPS}/{id}"))?;
    let cgroup = Cgroup::from_paths(paths);
    if cgroup.exists() {
        cgroup.kill_all(Signal::SIGKILL as i32)?;
    }
    Ok(())
}

fn context(id: &str, paths: &CgroupPaths, host: HostFacts) -> Result<PlanContext> {
    let own = paths
        .unified()
        .ok_or_else(|| Error::NotFound("cgroup version 2".to_owned()))?;
    Ok(PlanContext {
        id: id.to_owned(),
        cgroup_view: CgroupView::Unified {
            own: own.to_string_lossy().into_owned(),
        },
        host,
        preserve_fds: 0,
        new_keyring: Toggle::On,
        root_entry: RootEntry::Pivot,
        init_of: |_| Style::Other,
    })
}

/// Namespaces to make and to join; the stub makes that of cgroups itself, once it is in its own.
fn namespaces(plan: &Plan) -> Result<Namespaces> {
    let mut found = Namespaces {
        join: Vec::new(),
        make: CloneFlags::empty(),
    };
    for namespace in &plan.namespaces {
        let flag = CloneFlags::from_bits_retain(namespace.kind.clone_flag());
        match (namespace.kind, &namespace.path) {
            (NamespaceKind::Cgroup, None) => {}
            (NamespaceKind::Ipc | NamespaceKind::Uts | NamespaceKind::Pid, Some(path)) => {
                let file = OpenFile::open(path).map_err(Error::on("open namespace", path))?;
                found.join.push((file.into(), flag));
            }
            (NamespaceKind::User | NamespaceKind::Time, _) | (_, Some(_)) => {
                let kind = namespace.kind.as_str();
                return Err(Error::Invalid(format!(
                    "linux.namespaces: a {kind} namespace cannot be made or joined in the guest"
                )));
            }
            (_, None) => found.make |= flag,
        }
    }
    Ok(found)
}
