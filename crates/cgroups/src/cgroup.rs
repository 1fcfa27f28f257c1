//! A container's cgroup in all hierarchies: made, limited, entered, frozen, measured.
//!
//! Killing is in `kill.rs`, removing in `remove.rs`. Nothing here decides what the limits are.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use sys::Pid;

use crate::hierarchies::{Controller, Hierarchies, Kind, Layout};
use crate::oom::OomWatch;
use crate::paths::{CgroupDir, CgroupPaths};
use crate::resources::Resources;
use crate::stats::Stats;
use crate::wait::{Patience, Waited};
use crate::{Error, Result, file, procs, remove, v1, v2};

/// So often a directory is made again whose parent a container that ends took away meanwhile.
const MAKE_ATTEMPTS: usize = 10;

/// So long a task that is just being born is offered again (runc: 5 times 30 ms).
const ATTACH_LIMIT: Duration = Duration::from_millis(150);

/// One cgroup, known by its directories alone: dropping it leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    pub(crate) paths: CgroupPaths,
}

impl Cgroup {
    /// Makes the cgroup for `linux.cgroupsPath`; see [`CgroupPaths::new`] for where.
    pub fn create(hierarchies: &Hierarchies, cgroups_path: &str) -> Result<Self> {
        Self::create_at(CgroupPaths::new(hierarchies, cgroups_path)?)
    }

    /// Makes the cgroup at directories that are in the journal already.
    ///
    /// One that is there is taken over unless somebody runs in it or it is frozen. On failure
    /// what was made is removed again. On version 1, [`Self::apply`] comes before
    /// [`Self::attach`]: it fills the cpuset.
    pub fn create_at(paths: CgroupPaths) -> Result<Self> {
        let mut made = Vec::with_capacity(paths.dirs.len());
        for dir in &paths.dirs {
            match make(dir, paths.layout) {
                Ok(Found::Nothing) => made.push(dir),
                Ok(Found::Unused) => {}
                Err(error) => {
                    undo_making(made);
                    return Err(error);
                }
            }
        }
        Ok(Self { paths })
    }

    /// What is missing of the cgroup that systemd has made for a scope: the directories of hierarchies that
    /// it leaves alone. On failure those are removed again.
    pub fn complete_at(paths: CgroupPaths) -> Result<Self> {
        let mut made = Vec::new();
        for dir in &paths.dirs {
            let is_there = dir.path.exists();
            let done = if is_there {
                ready(dir, paths.layout)
            } else {
                make(dir, paths.layout).map(drop)
            };
            match done {
                Ok(()) if is_there => {}
                Ok(()) => made.push(dir),
                Err(error) => {
                    undo_making(made);
                    return Err(error);
                }
            }
        }
        Ok(Self { paths })
    }

    /// A cgroup that was made before.
    #[must_use]
    pub fn from_paths(paths: CgroupPaths) -> Self {
        Self { paths }
    }

    /// Its directories.
    #[must_use]
    pub fn paths(&self) -> &CgroupPaths {
        &self.paths
    }

    /// Whether its leading directory is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.leading().is_ok_and(Path::exists)
    }

    /// Whether somebody runs in it or it is frozen, in any hierarchy: [`Self::create_at`] does not take
    /// over such a one. One that is not there is not in use.
    pub fn is_in_use(&self) -> Result<bool> {
        match self.check_unused() {
            Ok(()) => Ok(false),
            Err(Error::InUse { .. } | Error::Frozen { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::is_in_use`].
    ///
    /// # Errors
    /// [`Error::InUse`] and [`Error::Frozen`] with the directory.
    pub fn check_unused(&self) -> Result<()> {
        let mut dirs = self.paths.dirs.iter();
        dirs.try_for_each(|dir| check_unused(&dir.path))
    }

    /// Writes the limits that are set. A value that cannot be applied is an error that names it;
    /// those before it stay.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        match (self.paths.layout, self.paths.unified()) {
            (Layout::V2, Some(dir)) => v2::limits::apply(dir, resources),
            _ => v1::limits::apply(&self.paths, resources),
        }
    }

    /// Moves a process into the cgroup of every hierarchy. ESRCH: it is gone.
    pub fn attach(&self, pid: Pid) -> Result<()> {
        self.paths
            .dirs
            .iter()
            .try_for_each(|dir| attach(dir, &dir.path, pid))
    }

    /// The `tasks` files of version 1, open for writing. A process with one thread moves itself by
    /// writing `0` to each, and takes no lock against all forks of the machine. Who moves it from
    /// outside takes it, and after a quiet time waits for a grace period of RCU: 5 to 35 ms on Linux
    /// 6.18, where these take 0.9 ms for nine hierarchies (`examples/cost.rs`, two cores).
    ///
    /// # Errors
    /// [`Error::is_not_found`]: the cgroup is gone.
    pub fn open_tasks(&self) -> Result<Vec<(PathBuf, OwnedFd)>> {
        let is_legacy = |dir: &&CgroupDir| dir.kind != Kind::Unified;
        let legacy = self.paths.dirs.iter().filter(is_legacy);
        legacy
            .map(|dir| open_tasks(dir.path.join("tasks")))
            .collect()
    }

    /// The files of all hierarchies by which a process with one thread moves itself, by writing `0` to each: a
    /// new one that does so before it is a program is nowhere else at any time. No cpuset is empty afterwards.
    ///
    /// # Errors
    /// As [`Self::open_tasks`].
    pub fn open_entrances(&self) -> Result<Vec<OwnedFd>> {
        let open = |dir: &CgroupDir| {
            if holds_cpuset(dir) {
                v1::cpuset::fill(&dir.path)?;
            }
            let name = match dir.kind {
                Kind::Unified => "cgroup.procs",
                _ => "tasks",
            };
            open_tasks(dir.path.join(name)).map(|(_, file)| file)
        };
        self.paths.dirs.iter().map(open).collect()
    }

    /// The directory of version 2, for clone3(2) with CLONE_INTO_CGROUP (Linux 5.7), which takes no
    /// such lock either. Whoever cannot clone is moved by [`Self::attach_unified`].
    ///
    /// # Errors
    /// As [`Self::open_tasks`].
    pub fn open_unified(&self) -> Result<Option<OwnedFd>> {
        self.paths.unified().map(open_directory).transpose()
    }

    /// Moves a process in the hierarchy of version 2 alone: one that has moved itself in
    /// version 1 ([`Self::open_tasks`]).
    pub fn attach_unified(&self, pid: Pid) -> Result<()> {
        let mut unified = self
            .paths
            .dirs
            .iter()
            .filter(|dir| dir.kind == Kind::Unified);
        unified.try_for_each(|dir| attach(dir, &dir.path, pid))
    }

    /// Moves a process into a cgroup below, which must be there (`runc exec --cgroup`).
    pub fn attach_below(&self, below: &Path, pid: Pid) -> Result<()> {
        if below
            .components()
            .any(|part| !matches!(part, std::path::Component::Normal(_)))
        {
            return Err(Error::Invalid {
                field: "cgroup",
                why: format!("bad sub cgroup path: {}", below.display()),
            });
        }
        let mut dirs = self.paths.dirs.iter();
        dirs.try_for_each(|dir| attach(dir, &dir.path.join(below), pid))
            .map_err(|error| Error::Below {
                pid: pid.as_raw(),
                below: below.to_owned(),
                source: Box::new(error),
            })
    }

    /// As [`Self::attach_unified`], or to the init of the container where version 2 does not let it:
    /// an init that made cgroups of its own (systemd) lives in one of them, and none but they may
    /// hold processes.
    pub fn attach_unified_beside(&self, init: Pid, pid: Pid) -> Result<()> {
        match (self.attach_unified(pid), self.paths.unified()) {
            (Err(error), Some(dir)) if file::is(&error, Errno::EBUSY) => {
                let own = procs::unified_of(init)?;
                let Some(mount_point) =
                    self.paths.dirs.iter().find(|dir| dir.kind == Kind::Unified)
                else {
                    return Err(error);
                };
                let place = mount_point.mount_point.join(own.trim_start_matches('/'));
                // Only below: an init that left the container's cgroup is no guide.
                if place.starts_with(dir) {
                    attach(mount_point, &place, pid)
                } else {
                    Err(error)
                }
            }
            (attached, _) => attached,
        }
    }

    /// The processes in the cgroup and below it, in no order. None when the cgroup is gone.
    pub fn procs(&self) -> Result<Vec<Pid>> {
        procs::below(self.leading()?)
    }

    /// Freezes all processes, or leaves them thawed and fails.
    pub fn freeze(&self) -> Result<()> {
        let frozen = match self.freezer()? {
            Freezer::V1(dir) => v1::freezer::freeze(dir),
            Freezer::V2(dir) => v2::freezer::freeze(dir),
        };
        if frozen.is_err() {
            // The first error is the one to report; when even this fails, the next thaw is ours.
            let _worse = self.thaw();
        }
        frozen
    }

    /// Thaws all processes; no error if they are thawed.
    pub fn thaw(&self) -> Result<()> {
        match self.freezer()? {
            Freezer::V1(dir) => v1::freezer::thaw(dir),
            Freezer::V2(dir) => v2::freezer::thaw(dir),
        }
    }

    /// Whether [`Self::freeze`] was the last of the two. A host without a freezer freezes nothing.
    pub fn is_frozen(&self) -> Result<bool> {
        match self.freezer() {
            Ok(Freezer::V1(dir)) => v1::freezer::is_frozen(dir),
            Ok(Freezer::V2(dir)) => v2::freezer::is_frozen(dir),
            Err(Error::NoController { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many of its processes the kernel has killed for memory until now; none where that is not
    /// counted (version 1 before Linux 4.13) or memory is not accounted. One file is read.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let (dir, file) = match (self.paths.layout, self.paths.unified()) {
            (Layout::V2, Some(dir)) => (dir, "memory.events"),
            _ => (self.paths.legacy(Controller::Memory)?, "memory.oom_control"),
        };
        file::value_of(&file::read(dir, file).ok()?, "oom_kill")
    }

    /// What the container has used until now.
    pub fn stats(&self) -> Result<Stats> {
        match (self.paths.layout, self.paths.unified()) {
            (Layout::V2, Some(dir)) => Ok(Stats::V2(Box::new(v2::stats::read(dir)?))),
            _ => Ok(Stats::V1(Box::new(v1::stats::read(&self.paths)?))),
        }
    }

    /// Starts to listen for the OOM killer.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        match (self.paths.legacy(Controller::Memory), self.paths.unified()) {
            (Some(dir), _) => OomWatch::legacy(dir),
            (None, Some(dir)) => OomWatch::unified(dir),
            (None, None) => Err(Error::NoController {
                field: "watching for OOM",
                controller: Controller::Memory.name().to_owned(),
            }),
        }
    }

    /// The directory that stands for all: the freezer's, because killing needs the same processes
    /// that freezing stopped; else that of version 2; else the first.
    pub(crate) fn leading(&self) -> Result<&Path> {
        let first = || self.paths.dirs.first().map(|dir| dir.path.as_path());
        self.paths
            .legacy(Controller::Freezer)
            .or_else(|| self.paths.unified())
            .or_else(first)
            .ok_or(Error::NoHierarchy)
    }

    pub(crate) fn freezer(&self) -> Result<Freezer<'_>> {
        match (self.paths.legacy(Controller::Freezer), self.paths.unified()) {
            (Some(dir), _) => Ok(Freezer::V1(dir)),
            (None, Some(dir)) => Ok(Freezer::V2(dir)),
            (None, None) => Err(Error::NoController {
                field: "freezing",
                controller: Controller::Freezer.name().to_owned(),
            }),
        }
    }
}

fn open_tasks(path: PathBuf) -> Result<(PathBuf, OwnedFd)> {
    match File::options().write(true).open(&path) {
        Ok(file) => Ok((path, file.into())),
        Err(source) => Err(Error::Write {
            path,
            value: "0".to_owned(),
            source,
        }),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let opened = File::open(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    });
    Ok(opened?.into())
}

/// Where to freeze. A hybrid host has both; version 1's is the one that other tools look at.
pub(crate) enum Freezer<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

/// What there was where a cgroup was made.
enum Found {
    Nothing,
    /// A cgroup without processes; not ours to remove when making another fails.
    Unused,
}

fn undo_making(made: Vec<&CgroupDir>) {
    // The error of making is the one to report.
    made.into_iter()
        .rev()
        .for_each(|dir| drop(remove::remove_now(dir)));
}

/// Makes the directory of one hierarchy, or takes over an unused one.
fn make(dir: &CgroupDir, layout: Layout) -> Result<Found> {
    match make_directory(&dir.path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            check_unused(&dir.path)?;
            return ready(dir, layout).map(|()| Found::Unused);
        }
        Err(source) => {
            return Err(Error::Make {
                path: dir.path.clone(),
                source,
            });
        }
    }
    let readied = ready(dir, layout);
    if readied.is_err() {
        // The error of making is the one to report.
        drop(remove::remove_now(dir));
    }
    readied.map(|()| Found::Nothing)
}

fn ready(dir: &CgroupDir, layout: Layout) -> Result<()> {
    if dir.kind == Kind::Unified {
        if layout == Layout::V2 {
            v2::controllers::enable_down_to(&dir.mount_point, &dir.path)?;
        }
        v2::controllers::make_valid(&dir.path)?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.mode(0o755);
    let mut made = builder.create(path);
    for _ in 0..MAKE_ATTEMPTS {
        match (&made, path.parent()) {
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
                match DirBuilder::new().recursive(true).mode(0o755).create(parent) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => made = builder.create(path),
                }
            }
            _ => break,
        }
    }
    made
}

fn check_unused(path: &Path) -> Result<()> {
    let path = path.to_owned();
    let processes = procs::below(&path)?.len();
    if processes > 0 {
        return Err(Error::InUse { path, processes });
    }
    if v1::freezer::is_frozen(&path)? || v2::freezer::is_frozen(&path)? {
        return Err(Error::Frozen { path });
    }
    Ok(())
}

/// Moves a process into one directory.
fn attach(dir: &CgroupDir, path: &Path, pid: Pid) -> Result<()> {
    match file::write_number(path, "cgroup.procs", pid) {
        Ok(()) => Ok(()),
        // No cpuset is filled until somebody needs it: apply() normally has.
        Err(error) if file::is(&error, Errno::ENOSPC) && holds_cpuset(dir) => {
            v1::cpuset::fill(path)?;
            file::write_number(path, "cgroup.procs", pid)
        }
        Err(error) if refuses_processes(&error, path) => attach_threads(path, pid),
        Err(error) if file::is(&error, Errno::EINVAL) => attach_newborn(path, pid, error),
        Err(error) => Err(error),
    }
}

fn holds_cpuset(dir: &CgroupDir) -> bool {
    matches!(&dir.kind, Kind::V1(controllers) if controllers.contains(&Controller::Cpuset))
}

/// Before Linux 3.0, cgroup.procs is for reading only.
fn refuses_processes(error: &Error, path: &Path) -> bool {
    let kinds = [Errno::EINVAL, Errno::EACCES, Errno::EPERM, Errno::EIO];
    kinds.iter().any(|errno| file::is(error, *errno))
        && fs::metadata(path.join("cgroup.procs"))
            .is_ok_and(|metadata| metadata.permissions().mode() & 0o222 == 0)
}

/// Moves thread after thread, until a look finds none that has not moved.
fn attach_threads(path: &Path, pid: Pid) -> Result<()> {
    let mut moved: Vec<i32> = Vec::new();
    loop {
        let listed = procs::threads(pid)?;
        let left: Vec<i32> = listed
            .into_iter()
            .filter(|tid| !moved.contains(tid))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        for tid in left {
            match file::write_number(path, "tasks", tid) {
                // A thread that ended needs no moving.
                Err(error) if file::is(&error, Errno::ESRCH) && tid != pid.as_raw() => {}
                written => written?,
            }
            moved.push(tid);
        }
    }
}

/// The kernel answers EINVAL for a task that is not yet fully there, too.
fn attach_newborn(path: &Path, pid: Pid, mut error: Error) -> Result<()> {
    let mut patience = Patience::new(ATTACH_LIMIT);
    while patience.pause(None) == Waited::LookAgain {
        match file::write_number(path, "cgroup.procs", pid) {
            Err(again) if file::is(&again, Errno::EINVAL) => error = again,
            written => return written,
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    /// A cgroup of two hierarchies, both of which are this directory.
    fn cgroup(dir: &Path) -> Cgroup {
        let place = |kind: Kind| CgroupDir {
            kind,
            names: String::new(),
            mount_point: dir.to_owned(),
            path: dir.to_owned(),
            made: Vec::new(),
        };
        let dirs = [Kind::V1(vec![Controller::Pids]), Kind::Unified]
            .map(place)
            .to_vec();
        Cgroup::from_paths(CgroupPaths {
            layout: Layout::Hybrid,
            dirs,
        })
    }

    #[test]
    fn process_is_written_to_every_hierarchy_or_to_version_2_alone() {
        let dir = directory(&[("cgroup.procs", "")]);
        cgroup(dir.path()).attach(Pid::from_raw(12)).unwrap();
        cgroup(dir.path())
            .attach_unified(Pid::from_raw(13))
            .unwrap();
        assert_eq!(written(dir.path(), "cgroup.procs"), ["12", "12", "13"]);
        let error = cgroup(&dir.path().join("gone"))
            .attach(Pid::from_raw(12))
            .unwrap_err();
        assert!(error.is_not_found());
    }

    #[test]
    fn a_process_moves_itself_by_files_of_version_1_and_is_born_into_version_2() {
        let dir = directory(&[("tasks", "")]);
        let tasks = cgroup(dir.path()).open_tasks().unwrap();
        let paths: Vec<_> = tasks.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, [&dir.path().join("tasks")]);
        assert!(cgroup(dir.path()).open_unified().unwrap().is_some());
        let missing = cgroup(dir.path()).open_entrances().unwrap_err();
        assert!(missing.is_not_found(), "{missing}");
        let dir = directory(&[("tasks", ""), ("cgroup.procs", "")]);
        assert_eq!(cgroup(dir.path()).open_entrances().unwrap().len(), 2);
        let gone = cgroup(&dir.path().join("gone"));
        assert!(gone.open_tasks().unwrap_err().is_not_found());
        assert!(gone.open_unified().unwrap_err().is_not_found());
    }

    #[test]
    fn kernel_that_moves_no_processes_moves_their_threads() {
        let dir = directory(&[("tasks", "")]);
        attach_threads(dir.path(), Pid::this()).unwrap();
        assert!(written(dir.path(), "tasks").contains(&Pid::this().to_string()));
    }

    #[test]
    fn kills_for_memory_are_counted_where_the_kernel_does() {
        let count = |layout, name: &str, text: &str| {
            let dir = directory(&[(name, text)]);
            let mut paths = cgroup(dir.path()).paths.clone();
            paths.layout = layout;
            for part in &mut paths.dirs {
                part.kind = match layout {
                    Layout::V2 => Kind::Unified,
                    _ => Kind::V1(vec![Controller::Memory]),
                };
            }
            Cgroup::from_paths(paths).oom_kills()
        };
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        assert_eq!(count(Layout::V1, "memory.oom_control", v1), Some(2));
        let old = "oom_kill_disable 0\nunder_oom 0\n";
        assert_eq!(count(Layout::V1, "memory.oom_control", old), None);
        let v2 = "low 0\noom 4\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(count(Layout::V2, "memory.events", v2), Some(3));
        assert_eq!(count(Layout::V2, "cgroup.procs", ""), None);
    }

    #[test]
    fn freezing_needs_a_freezer_and_a_host_without_one_is_not_frozen() {
        let dir = directory(&[]);
        let mut paths = cgroup(dir.path()).paths.clone();
        paths.dirs.pop();
        let without = Cgroup::from_paths(paths);
        assert!(matches!(without.freeze(), Err(Error::NoController { .. })));
        assert!(!without.is_frozen().unwrap());
        assert!(matches!(
            without.oom_watch(),
            Err(Error::NoController { .. })
        ));
    }
}
