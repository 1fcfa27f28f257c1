//! A container from the files of a checkpoint, by CRIU.
//!
//! ```text
//!   journal ─> cgroups ─> criu ──> namespaces made ─> hooks ─> processes run ─> created
//!                           └─ in a mount namespace of its own, where the root is a mount
//! ```
//! Whatever fails, `progress.rs` undoes all of it.

use std::fs::{self, File};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use bundle::{Bundle, NamespaceKind, Plan};
use cgroups::{Cgroup, CgroupPaths, Kind as HierarchyKind};
use launch::plan::PlannedMount;
use mounts::{Kind as Made, LastLink, RootDir};
use nix::mount::{MsFlags, mount};
use sys::Child;

use crate::checkpoint::{
    Folders, LIMIT, common, refuse_joined, refuse_limited, refuse_stub, refuse_view,
};
use crate::container::Container;
use crate::create::{self, Created, Parent, Stdio};
use crate::criu::wire::{CgroupRoot, InheritFd, Kind, Options, Pair};
use crate::criu::{Criu, Note, Task};
use crate::host::Host;
use crate::id::ContainerId;
use crate::joined::Joined;
use crate::journal::{Journal, Phase};
use crate::process::ProcessId;
use crate::progress::{self, Progress};
use crate::scope::{self, CgroupManager};
use crate::state_dir::StateDir;
use crate::{Error, Result, external, lxc_config, membership, mount_namespace, priority, resctrl};

/// CRIU's log file, in the folder of work files or else of images.
const LOG: &str = "restore.log";

/// Where the root is mounted for CRIU, in the state directory: it wants a mount whose parent is
/// not covered.
const ROOT: &str = "criu-root";

/// The first descriptor of CRIU's after its streams and its socket.
const FIRST_FD: i32 = 4;

/// A container to bring back.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Absolute path of the state root.
    pub(crate) root: &'a Path,
    /// The container's id, which may be another than it had.
    pub(crate) id: &'a ContainerId,
    /// Its bundle, as it was created from or like it.
    pub(crate) bundle: &'a Bundle,
    /// Folder of the images.
    pub(crate) images: &'a Path,
    /// Folder for CRIU's log and work files; none: that of the images.
    pub(crate) work: Option<&'a Path>,
    /// What only the caller knows; the rest is filled in here.
    pub(crate) options: Options,
    /// Descriptors of init, where it had pipes or files from outside.
    pub(crate) stdio: Stdio<'a>,
    /// Whose child init becomes.
    pub(crate) parent: Parent,
    /// Who makes its cgroups.
    pub(crate) cgroup_manager: CgroupManager,
}

/// One try.
struct Attempt<'a> {
    request: &'a Request<'a>,
    plan: Plan,
    dir: StateDir,
    criu: Criu,
    /// What init's streams were.
    streams: [String; 3],
}

/// Brings a container back; its processes run when this returns.
///
/// # Errors
/// [`Error::Unsupported`] without a CRIU that works here, [`Error::Exists`], [`Error::Criu`] and
/// others; nothing is left then.
pub(crate) fn restore(host: &Host, request: &Request<'_>) -> Result<Created> {
    let criu = Criu::find()?;
    let streams = read_streams(request.images)?;
    if request.cgroup_manager == CgroupManager::Systemd {
        let why = "it would not get its limits: leave out --systemd-cgroup, and name a directory in cgroupsPath";
        return Err(Error::unsupported("restoring into a scope of systemd", why));
    }
    let (paths, _no_scope) =
        scope::place(host, request.bundle, request.id, request.cgroup_manager)?;
    let plan = create::plan(host, request.bundle, request.id, &paths)?;
    refuse_stub(&plan.init.pid_one)?;
    refuse_view(plan.view)?;
    refuse_joined(&plan)?;
    refuse_limited(&plan.annotations)?;
    create::log(request.id.as_str(), &plan.warnings, &plan.notes);
    create::check_terminal(request.stdio, &plan)?;
    create::check_rootfs(Path::new(&plan.init.root.path))?;
    let attempt = Attempt {
        request,
        plan,
        dir: StateDir::create(request.root, request.id)?,
        criu,
        streams,
    };
    progress::make_or_undo(&attempt.dir, request.id, |progress| {
        attempt.bring_back(paths, progress)
    })
}

fn read_streams(images: &Path) -> Result<[String; 3]> {
    let path = images.join(external::STREAMS);
    let text = fs::read(&path).map_err(Error::on("read", &path))?;
    serde_json::from_slice(&text).map_err(|e| Error::on("read", &path)(e.into()))
}

impl Attempt<'_> {
    /// Gives the container and the master of its terminal.
    fn bring_back(
        &self,
        paths: CgroupPaths,
        progress: &mut Progress,
    ) -> Result<(Container, Option<OwnedFd>)> {
        let Progress { journal, init, .. } = progress;
        let name = lxc_config::name_of(self.dir.path());
        let journal = journal.insert(Journal {
            resctrl: resctrl::class(&self.plan)?,
            ..Journal::of(&self.plan, name, paths)
        });
        journal.write(&self.dir)?;
        if let Some(filter) = &self.plan.init.process.seccomp {
            self.dir.write_filter(filter)?;
        }
        let cgroup = Cgroup::create_at(journal.cgroup.clone())?;
        cgroup.apply(&self.plan.resources)?;
        priority::apply(&self.plan, &cgroup, journal);
        make_mount_points(&self.plan)?;

        let root = self.dir.path().join(ROOT);
        let (mounts, folders) = self.place(&root)?;
        let mut options = self.request.options.clone();
        common(&mut options, &folders, LOG, &self.plan);
        let fds = self.fill_in(&mut options, &root, journal)?;
        let mut terminal = None;
        let told = self.criu.perform(Task {
            kind: Kind::Restore,
            options,
            stdio: self.streams()?,
            fds,
            mounts: Some(mounts),
            log: folders.log,
            limit: LIMIT,
            on_note: &mut |note| match note {
                Note::Namespaces(pid) => {
                    self.note_init(journal, init, pid)?;
                    create::host_hooks(&self.plan, pid)
                }
                Note::Restored => {
                    let restored = journal.init.ok_or(Error::NotRunning)?;
                    self.bring_in(&cgroup, restored)?;
                    let threads = || membership::threads(restored.as_pid());
                    priority::classify(&self.plan, threads, journal)
                }
                Note::Terminal(master) => {
                    terminal = Some(master);
                    Ok(())
                }
                Note::StatusReady | Note::Other => Ok(()),
            },
        })?;
        let restored = told.restore.ok_or_else(|| Error::Criu {
            said: "it does not say what it restored".to_owned(),
        })?;
        if journal.init.is_none() {
            self.note_init(journal, init, restored.pid)?;
        }
        add_time_namespace(journal, restored.pid);
        journal.phase = Phase::Created;
        journal.write(&self.dir)?;
        let (dir, journal) = (self.dir.clone(), journal.clone());
        Ok((
            Container {
                dir,
                journal,
                cgroup,
            },
            terminal,
        ))
    }

    /// From here on `delete` finds init.
    fn note_init(&self, journal: &mut Journal, init: &mut Option<Joined>, pid: i32) -> Result<()> {
        if self.request.parent == Parent::Us {
            *init = Some(Joined::Ours(Child::adopt(sys::Pid::from_raw(pid))));
        }
        journal.init = Some(ProcessId::of(pid)?);
        journal.write(&self.dir)
    }

    fn bring_in(&self, cgroup: &Cgroup, init: ProcessId) -> Result<()> {
        for pid in membership::bring_in(cgroup, init.as_pid())? {
            let (container, pid) = (self.request.id.as_str(), pid.as_raw());
            tracing::warn!(container, pid, "criu restored it outside of its cgroup");
        }
        Ok(())
    }

    /// A mount namespace where the root file system is a mount at `root`, and the folders as seen
    /// from there, for CRIU mounts in them. It is CRIU's alone and goes with it: nothing is left
    /// on the host, whoever is killed.
    fn place(&self, root: &Path) -> Result<(OwnedFd, Folders)> {
        fs::create_dir(root).map_err(Error::on("make directory", root))?;
        let rootfs = Path::new(&self.plan.init.root.path);
        let (images, work) = (self.request.images, self.request.work);
        mount_namespace::changed(|| {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(rootfs), root, None::<&str>, flags, None::<&str>)
                .map_err(|errno| Error::on("mount the root file system at", root)(errno.into()))?;
            Folders::open(images, work, LOG)
        })
    }

    fn streams(&self) -> Result<Option<[OwnedFd; 3]>> {
        let Stdio::Streams([stdin, stdout, stderr]) = self.request.stdio else {
            return Ok(None);
        };
        let own = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned()
                .map_err(Error::io("duplicate a descriptor"))
        };
        Ok(Some([own(stdin)?, own(stdout)?, own(stderr)?]))
    }

    /// What stands for what is not in the images; gives the descriptors to go with it.
    fn fill_in(
        &self,
        options: &mut Options,
        root: &Path,
        journal: &Journal,
    ) -> Result<Vec<(i32, OwnedFd)>> {
        options.root = Some(root.to_string_lossy().into_owned());
        options.rst_sibling = Some(true);
        options.evasive_devices = Some(true);
        options.ext_mnt.extend(external::mounts(&self.plan));
        options.cg_root.extend(cgroup_roots(&journal.cgroup));
        for (fd, name) in (0..).zip(&self.streams) {
            if external::is_outside(name) {
                let key = name.clone();
                options.inherit_fd.push(InheritFd { key, fd });
            }
        }
        let mut fds = Vec::new();
        for namespace in &self.plan.namespaces {
            let Some(path) = namespace.path.as_deref() else {
                continue;
            };
            match external::namespace_key(namespace.kind) {
                Some(key) => {
                    let file = File::open(path).map_err(Error::on("open namespace", path))?;
                    let fd = FIRST_FD + i32::try_from(fds.len()).unwrap_or(i32::MAX - FIRST_FD);
                    let key = key.to_owned();
                    options.inherit_fd.push(InheritFd { key, fd });
                    fds.push((fd, OwnedFd::from(file)));
                }
                None => options.join_ns.push(Pair {
                    key: namespace.kind.proc_name().to_owned(),
                    value: path.to_string_lossy().into_owned(),
                }),
            }
        }
        Ok(fds)
    }
}

/// Where each hierarchy's part of the container is now, by the names and paths of
/// `/proc/PID/cgroup`.
fn cgroup_roots(paths: &CgroupPaths) -> Vec<CgroupRoot> {
    let root = |name: &str, path: &Path, mount_point: &Path| CgroupRoot {
        controllers: Some(name.to_owned()),
        path: Path::new("/")
            .join(path.strip_prefix(mount_point).unwrap_or(path))
            .to_string_lossy()
            .into_owned(),
    };
    let mut roots = Vec::new();
    for dir in &paths.dirs {
        match dir.kind {
            HierarchyKind::Unified => roots.push(root("", &dir.path, &dir.mount_point)),
            HierarchyKind::V1(_) => roots.extend(
                dir.names
                    .split(',')
                    .map(|name| root(name, &dir.path, &dir.mount_point)),
            ),
        }
    }
    roots
}

/// Since Linux 5.6 CRIU restores into a time namespace, which an exec has to join, too.
fn add_time_namespace(journal: &mut Journal, pid: i32) {
    let time = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time")).ok();
    let kind = NamespaceKind::Time;
    if time(&pid.to_string()) != time("self") && !journal.namespaces.contains(&kind) {
        journal.namespaces.push(kind);
    }
}

/// Makes what is missing in the root for mounts to be on, as when the container was created: the
/// root may be another copy of the image. What is below another mount is in that one.
fn make_mount_points(plan: &Plan) -> Result<()> {
    let root = RootDir::open(Path::new(&plan.init.root.path)).map_err(launch::Error::from)?;
    let mut before: Vec<PathBuf> = Vec::new();
    for planned in &plan.init.mounts {
        let (PlannedMount::Plain(mount) | PlannedMount::Cgroup { mount, .. }) = planned;
        let target = PathBuf::from(&mount.target);
        if !before.iter().any(|above| target.starts_with(above)) {
            let file = mount.is_bind() && Path::new(&mount.source).is_file();
            let kind = if file { Made::File } else { Made::Directory };
            root.make(&target, kind, LastLink::Follow)
                .map_err(launch::Error::from)?;
        }
        before.push(target);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cgroups::Hierarchies;

    use super::*;

    #[test]
    fn cgroups_are_named_as_in_proc() {
        let mountinfo = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                         40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let hierarchies = Hierarchies::detect(mountinfo, own).unwrap();
        let paths = CgroupPaths::new(&hierarchies, "/x/c").unwrap();
        let roots = cgroup_roots(&paths);
        let mut named: Vec<_> = roots
            .iter()
            .map(|root| (root.controllers.as_deref().unwrap(), root.path.as_str()))
            .collect();
        named.sort_unstable();
        assert_eq!(
            named,
            [
                ("", "/x/c"),
                ("cpu", "/x/c"),
                ("cpuacct", "/x/c"),
                ("name=systemd", "/x/c"),
            ]
        );
    }
}
