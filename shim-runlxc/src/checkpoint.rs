//! A running container into files, by CRIU.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bundle::{Bundle, Plan, Status, Traffic};
use cgroups::{Cgroup, Controller};
use launch::plan::PidOne;
use nix::sched::CloneFlags;

use crate::container::Container;
use crate::criu::wire::{Kind, Options, Pair};
use crate::criu::{Criu, Note, Task};
use crate::host::Host;
use crate::id::ContainerId;
use crate::journal::Journal;
use crate::state_dir::StateDir;
use crate::{Error, Result, create, external};

/// How long CRIU may take: memory is written to a disk.
pub(crate) const LIMIT: Duration = Duration::from_secs(3600);

/// CRIU's log file, in the folder of work files or else of images.
const LOG: &str = "dump.log";

/// How much CRIU says in its log: all that helps to find a reason.
pub(crate) const LOG_LEVEL: i32 = 4;

/// CRIU's configuration for our containers, when it is there; the annotation
/// [`CONFIG_ANNOTATION`] names another.
const CONFIG: &str = "/etc/criu/runlxc.conf";

/// runc's annotation for it; empty: none.
pub(crate) const CONFIG_ANNOTATION: &str = "org.criu.config";

/// What becomes of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// Its processes are killed; the caller deletes it.
    End,
    /// It runs on.
    Run,
}

/// Which part of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// Memory alone, in advance; it runs on.
    Memory,
}

/// What to do.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Folder for the images; made when it is not there.
    pub(crate) images: &'a Path,
    /// Folder for CRIU's log and work files; none: that of the images.
    pub(crate) work: Option<&'a Path>,
    /// Folder of an earlier dump of memory, relative to that of the images.
    pub(crate) parent: Option<&'a str>,
    /// How much.
    pub(crate) part: Part,
    /// What comes then.
    pub(crate) afterwards: Afterwards,
    /// What only the caller knows; the rest is filled in here.
    pub(crate) options: Options,
    /// Told once the server of lazy pages listens.
    pub(crate) status: Option<OwnedFd>,
    /// So long it may take.
    pub(crate) limit: Duration,
}

/// The folders of one request, open.
pub(crate) struct Folders {
    pub(crate) images: File,
    pub(crate) work: Option<File>,
    pub(crate) log: PathBuf,
}

impl Folders {
    /// Opens them, made when they are not there; `log` is the name of the log file.
    pub(crate) fn open(images: &Path, work: Option<&Path>, log: &str) -> Result<Self> {
        let open = |path: &Path| {
            match DirBuilder::new().mode(0o700).recursive(true).create(path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(Error::on("make directory", path)(e));
                }
                _made_or_there => {}
            }
            File::open(path).map_err(Error::on("open", path))
        };
        Ok(Self {
            images: open(images)?,
            work: work.map(open).transpose()?,
            log: work.unwrap_or(images).join(log),
        })
    }
}

/// Fills in what a dump and a restore have in common.
pub(crate) fn common(options: &mut Options, folders: &Folders, log: &str, plan: &Plan) {
    options.images_dir_fd = folders.images.as_raw_fd();
    options.work_dir_fd = folders.work.as_ref().map(AsRawFd::as_raw_fd);
    options.log_file = Some(log.to_owned());
    options.log_level = Some(LOG_LEVEL);
    options.notify_scripts = Some(true);
    options.manage_cgroups = Some(true);
    options.orphan_pts_master = Some(true);
    // Binds that config.json does not name, below those it names.
    options.auto_ext_mnt = Some(true);
    options.ext_sharing = Some(true);
    options.ext_masters = Some(true);
    options.config_file = match plan.annotations.get(CONFIG_ANNOTATION).map(String::as_str) {
        Some("") => None,
        Some(path) => Some(path.to_owned()),
        None => Path::new(CONFIG).exists().then(|| CONFIG.to_owned()),
    };
    // Networks are the caller's affair, before and after.
    let empty = CloneFlags::CLONE_NEWNET.bits();
    options.empty_ns = Some(options.empty_ns.unwrap_or(0) | empty.cast_unsigned());
}

/// The program file of such a pid 1 is in no mount namespace any more, where CRIU looks for it.
pub(crate) fn refuse_stub(pid_one: &PidOne) -> Result<()> {
    let why = match pid_one {
        PidOne::Program => return Ok(()),
        PidOne::Stub { .. } => "its pid 1 is runlxc-init (rich mode dumb-init)",
        PidOne::Systemd(_) => "its program has runlxc-init for a parent (rich mode systemd)",
        PidOne::SbinInit(_) => "its program has runlxc-init for a parent (rich mode sbin-init)",
    };
    Err(Error::unsupported(
        "checkpoint and restore of this container",
        why,
    ))
}

/// What lxcfs shows is told by who asks: it is not the container's to take along.
pub(crate) fn refuse_view(view: bundle::View) -> Result<()> {
    match view {
        bundle::View::Host => Ok(()),
        bundle::View::Lxcfs => Err(Error::unsupported(
            "checkpoint and restore of this container",
            "lxcfs shows it its limits (org.pouch.view)",
        )),
    }
}

/// A restored container's network is empty when it starts, and what is in it then comes later.
pub(crate) fn refuse_limited(annotations: &BTreeMap<String, String>) -> Result<()> {
    let traffic = Traffic::of(annotations)?;
    if traffic.is_none() {
        return Ok(());
    }
    let why = format!("its network has limits ({})", traffic.field());
    Err(Error::unsupported(
        "checkpoint and restore of this container",
        why,
    ))
}

/// CRIU has no words for namespaces of others, and links of the host would not come back.
pub(crate) fn refuse_joined(plan: &Plan) -> Result<()> {
    use bundle::NamespaceKind::{Cgroup, Mount, User};
    let is_joined = |kind| {
        let mut namespaces = plan.namespaces.iter();
        namespaces.any(|it| it.kind == kind && it.path.is_some())
    };
    let has_mounts = plan.namespaces.iter().any(|it| it.kind == Mount);
    let joined = [User, Mount, Cgroup]
        .into_iter()
        .find(|kind| is_joined(*kind));
    let why = match joined {
        _ if !plan.net_devices.is_empty() => {
            "it has links of the host (linux.netDevices)".to_owned()
        }
        Some(kind) => format!("it joined a {} namespace", kind.as_str()),
        None if !has_mounts => "it is in the host's mount namespace".to_owned(),
        None => return Ok(()),
    };
    Err(Error::unsupported(
        "checkpoint and restore of this container",
        why,
    ))
}

impl Container {
    /// Writes the container to files, and may leave it running.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a CRIU that works here, or if pid 1 is not the program;
    /// [`Error::State`] unless it runs or is paused, [`Error::Criu`]. It runs on then.
    pub(crate) fn checkpoint(&self, request: Request<'_>) -> Result<()> {
        refuse_stub(&self.journal.pid_one)?;
        let criu = Criu::find()?;
        let status = self.require("checkpoint", &[Status::Running, Status::Paused])?;
        let plan = self.plan()?;
        refuse_view(plan.view)?;
        refuse_joined(&plan)?;
        // As updates have left them.
        refuse_limited(&Journal::read(&self.dir)?.annotations)?;
        let folders = Folders::open(request.images, request.work, LOG)?;
        let mut options = request.options;
        common(&mut options, &folders, LOG, &plan);
        options.pid = Some(self.pid());
        options.root = Some(self.journal.rootfs.to_string_lossy().into_owned());
        options.leave_running = Some(request.afterwards == Afterwards::Run);
        options.parent_img = request.parent.map(str::to_owned);
        options.track_mem = request.parent.is_some().then_some(true);
        options.freeze_cgroup = self.freezer(&criu);
        external_namespaces(&mut options, &plan)?;
        let kind = match request.part {
            Part::Memory => Kind::PreDump,
            Part::Whole => {
                self.external(&mut options, &plan, request.images)?;
                Kind::Dump
            }
        };
        let mut listener = request.status;
        let dumped = criu.perform(Task {
            kind,
            options,
            stdio: None,
            fds: Vec::new(),
            mounts: None,
            log: folders.log,
            limit: request.limit,
            on_note: &mut |note| match (note, listener.take()) {
                (Note::StatusReady, Some(listener)) => nix::unistd::write(&listener, &[0])
                    .map(drop)
                    .map_err(|errno| Error::io("write to --status-fd")(errno.into())),
                (_, kept) => {
                    listener = kept;
                    Ok(())
                }
            },
        });
        match dumped {
            Ok(_response) => Ok(()),
            Err(error) if status == Status::Running => Err(thawed(error, &self.cgroup)),
            Err(error) => Err(error),
        }
    }

    /// The container as config.json asks for it now.
    fn plan(&self) -> Result<Plan> {
        let bundle = Bundle::load(&self.journal.bundle)?;
        let id = ContainerId::parse(&self.journal.id)?;
        create::plan(&Host::detect()?, &bundle, &id, &self.journal.cgroup)
    }

    /// Freezing by a cgroup is sure to find all processes; by ptrace(2) new ones are looked for.
    fn freezer(&self, criu: &Criu) -> Option<String> {
        let paths = &self.journal.cgroup;
        let unified = || paths.unified().filter(|_| criu.at_least(3, 14));
        let dir = paths.legacy(Controller::Freezer).or_else(unified)?;
        Some(dir.to_string_lossy().into_owned())
    }

    fn external(&self, options: &mut Options, plan: &Plan, images: &Path) -> Result<()> {
        // The key in the images is the mount point itself, as with runc.
        let mounts = external::mounts(plan).into_iter().map(|mount| Pair {
            value: mount.key.clone(),
            key: mount.key,
        });
        options.ext_mnt.extend(mounts);
        let streams = external::streams(self.pid())?;
        let files = streams.iter().filter(|name| name.starts_with("file["));
        options.external.extend(files.cloned());
        let path = images.join(external::STREAMS);
        let text = serde_json::to_vec(&streams).map_err(|e| Error::on("write", &path)(e.into()))?;
        StateDir::write(&path, &text)
    }
}

/// The error of a dump; CRIU thaws what it froze unless it was killed.
fn thawed(error: Error, cgroup: &Cgroup) -> Error {
    let thaw = || match cgroup.is_frozen()? {
        true => cgroup.thaw(),
        false => Ok(()),
    };
    match thaw() {
        Ok(()) => error,
        Err(thaw) => Error::LeftFrozen {
            failed: Box::new(error),
            thaw: Error::from(thaw).chain(),
        },
    }
}

fn external_namespaces(options: &mut Options, plan: &Plan) -> Result<()> {
    for namespace in &plan.namespaces {
        if let (Some(path), Some(key)) = (&namespace.path, external::namespace_key(namespace.kind))
        {
            let word = external::namespace(namespace.kind, path, key)?;
            options.external.push(word);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use cgroups::{CgroupPaths, Hierarchies};

    use super::*;

    /// A freezer of version 1 in a folder.
    fn freezer(at: &Path) -> Cgroup {
        let at = at.display();
        let mountinfo = format!("40 31 0:37 / {at} rw - cgroup cgroup rw,freezer\n");
        let hierarchies = Hierarchies::detect(&mountinfo, "1:freezer:/\n").unwrap();
        Cgroup::from_paths(CgroupPaths::new(&hierarchies, "/c").unwrap())
    }

    #[test]
    fn a_failed_dump_thaws_and_is_told_even_when_that_fails() {
        let temp = tempfile::tempdir().unwrap();
        let cgroup = freezer(temp.path());
        let state = temp.path().join("c/freezer.state");
        fs::create_dir(temp.path().join("c")).unwrap();
        let failed = || Error::Criu {
            said: "no".to_owned(),
        };
        fs::write(&state, "FROZEN").unwrap();
        assert_eq!(thawed(failed(), &cgroup).to_string(), "criu failed: no");
        assert_eq!(fs::read_to_string(&state).unwrap().trim(), "THAWED");
        // Neither can it be read then.
        fs::remove_file(&state).unwrap();
        fs::create_dir(&state).unwrap();
        let both = thawed(failed(), &cgroup).chain();
        assert!(both.starts_with("criu failed: no; then the container could not be thawed: "));
        assert!(both.contains("freezer.state"), "{both}");
    }
}
