//! Project quota of ext4 and xfs: both directories of a snapshot are put into a project of its own
//! while they are empty, and what is made in them inherits it.
//!
//! The directory above them stays outside, so that the sidecar file can be written when the
//! snapshot is full. Nothing here walks a tree: the kernel is the only account.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    num::NonZeroU64,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use snapshot_core::{Error, Result, SnapshotId, Usage};
use sys::{
    filesystem::FilesystemKind,
    project_quota::{self, Inherit, Limits, ProjectId, Quota, QuotaState, project_of, set_project},
};

use super::{
    Abilities, Audit, Backend, Charge, Closed, Counting, Device, Full, Held, Kept, Kind, Left,
    ProjectRange, Record, Report, Resize, Stray, Support, directories, disk_usage,
    disk_usage::Walks,
    escape,
    groups::{Groups, Rest},
};
use crate::limit::{Group, Limit, Mode};

/// The quota of the file system that a root is on.
#[derive(Debug)]
pub struct Prjquota {
    kind: Kind,
    root: PathBuf,
    quota: Quota,
    range: ProjectRange,
    full: Full,
    groups: Mutex<Groups<ProjectId>>,
    /// Projects without an owner that have usage.
    strays: Mutex<BTreeSet<ProjectId>>,
    walks: Walks,
}

impl Prjquota {
    /// Takes the quota of the file system that `root` is on.
    ///
    /// # Errors
    /// [`Error::Precondition`] with what to do when limits do not hold there.
    pub fn open(root: &Path, range: ProjectRange) -> Result<Self> {
        Self::open_as(Kind::Prjquota, root, range)
    }

    pub(super) fn open_as(kind: Kind, root: &Path, range: ProjectRange) -> Result<Self> {
        let failed = |action| Error::io(action, root);
        let quota = Quota::open(root).map_err(failed("find the project quota of"))?;
        let fs = FilesystemKind::of(directories::open(root)?).map_err(failed("look at"))?;
        let state = quota
            .state()
            .map_err(failed("ask for the quota state of"))?;
        if let Some(why) = not_enforcing(state, fs) {
            let root = root.display();
            return Err(Error::Precondition(format!("{root} is on {why}")));
        }
        let full = match fs {
            FilesystemKind::Xfs => Full::NoSpace,
            _ => Full::QuotaExceeded,
        };
        let this = Self {
            kind,
            root: root.to_owned(),
            quota,
            range,
            full,
            groups: Mutex::default(),
            strays: Mutex::default(),
            walks: Walks::default(),
        };
        this.keep_outside()?;
        Ok(this)
    }

    /// A root that hands a project on to all that is made in it would give every snapshot the same.
    fn keep_outside(&self) -> Result<()> {
        for path in [self.root.clone(), self.root.join("snapshots")] {
            if !path.exists() {
                continue;
            }
            let open = directories::open(&path)?;
            let project = project_of(&open).map_err(Error::io("read the project of", &path))?;
            if project.inherit == Inherit::Yes {
                tracing::warn!(
                    path = %path.display(),
                    project = project.id.0,
                    "a directory of ours handed its project on to what is made in it; no longer"
                );
                set_project(&open, ProjectId(0), Inherit::No)
                    .map_err(Error::io("take the project away from", &path))?;
            }
        }
        Ok(())
    }

    /// Fills a directory in the group's project if that has one, else in a new one.
    fn create_in_group(
        &self,
        directory: &Path,
        id: SnapshotId,
        limit: &Limit,
        group: &Group,
    ) -> Result<ProjectId> {
        // Held to the end: the group must not lose its last member meanwhile.
        let mut groups = self.groups();
        let project = match groups.account(group) {
            Some(project) => project,
            None => self.untouched(id)?,
        };
        self.fill(directory, project, limit)?;
        groups.join(group, project, id);
        Ok(project)
    }

    /// The project of a new snapshot, which nobody must have used.
    fn untouched(&self, id: SnapshotId) -> Result<ProjectId> {
        let project = self.range.of(id);
        let usage = self.get(project)?;
        if usage != project_quota::Usage::default() {
            return Err(Error::Precondition(format!(
                "project {} on {}, meant for the new snapshot (number {id}), is somebody else's: {} bytes and {} \
                 inodes are used, limits are {:?}; give project ids another range than {}",
                project.0,
                self.root.display(),
                usage.bytes,
                usage.inodes,
                usage.limits,
                self.range
            )));
        }
        Ok(project)
    }

    fn fill(&self, directory: &Path, project: ProjectId, limit: &Limit) -> Result<()> {
        let made = directories::make(directory)?;
        for (path, open) in [&made.upper, &made.work] {
            set_project(open, project, Inherit::Yes)
                .map_err(Error::io("put into a project", path))?;
        }
        if limit.mode == Mode::Hard {
            self.set(project, &limits_of(limit))?;
        }
        Ok(())
    }

    fn get(&self, project: ProjectId) -> Result<project_quota::Usage> {
        self.quota
            .get(project)
            .map_err(Error::io("read a project's quota on", &self.root))
    }

    fn set(&self, project: ProjectId, limits: &Limits) -> Result<()> {
        self.quota
            .set(project, limits)
            .map_err(Error::io("limit a project on", &self.root))
    }

    /// The project of a record of ours.
    fn project(held: &Held<'_>) -> Result<ProjectId> {
        match held.record {
            Record::Prjquota { project, .. } => Ok(ProjectId(*project)),
            other => Err(Error::Precondition(format!(
                "snapshot {held} is in no project: {other:?}"
            ))),
        }
    }

    /// Gives a project back that nobody owns, or remembers it while it has usage: its limits stay
    /// so long, since who keeps deleted files open can still write to them.
    fn give_back(&self, project: ProjectId, report: &mut Report) -> Result<()> {
        let usage = self.get(project)?;
        if usage.bytes == 0 && usage.inodes == 0 {
            if usage.limits != Limits::default() {
                self.set(project, &Limits::default())?;
                report.cleared += 1;
            }
            self.strays().remove(&project);
        } else {
            self.strays().insert(project);
            report.strays.push(Stray {
                what: format!("project {}", project.0),
                usage: Usage {
                    bytes: usage.bytes,
                    inodes: usage.inodes,
                },
            });
        }
        Ok(())
    }

    /// All projects of ours that the kernel knows.
    fn in_force(&self) -> Result<BTreeMap<ProjectId, project_quota::Usage>> {
        let mut found = BTreeMap::new();
        let mut from = self.range.first();
        loop {
            let next = match self.quota.next(from) {
                // Before kernel 4.6 nobody can ask: leftovers stay until the file system is made
                // anew, and are never given to another snapshot.
                Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => None,
                other => other.map_err(Error::io("list the projects of", &self.root))?,
            };
            let Some((project, usage)) = next else {
                return Ok(found);
            };
            if !self.range.contains(project) {
                return Ok(found);
            }
            found.insert(project, usage);
            if project == self.range.last() {
                return Ok(found);
            }
            from = ProjectId(project.0 + 1);
        }
    }

    fn groups(&self) -> MutexGuard<'_, Groups<ProjectId>> {
        // Each change is one insertion or removal: a panic elsewhere leaves it whole.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strays(&self) -> MutexGuard<'_, BTreeSet<ProjectId>> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Prjquota {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            resize: Resize::Both,
            inodes: Support::Yes,
            soft: Support::Yes,
            groups: Support::Yes,
            full: self.full,
            df: Support::Yes,
            counting: Counting::Exact,
        }
    }

    fn create(&self, directory: &Path, id: SnapshotId, limit: &Limit) -> Result<Record> {
        if limit.mode == Mode::Off {
            directories::make(directory)?;
            return Ok(Record::Plain);
        }
        let project = match &limit.group {
            Some(group) => self.create_in_group(directory, id, limit, group)?,
            None => {
                let project = self.untouched(id)?;
                self.fill(directory, project, limit)?;
                project
            }
        };
        Ok(Record::Prjquota {
            project: project.0,
            group: limit.group.clone(),
        })
    }

    fn set_limit(&self, held: &Held<'_>, limit: &Limit) -> Result<()> {
        same_group(held, limit)?;
        self.set(Self::project(held)?, &limits_of(limit))
    }

    fn usage(&self, held: &Held<'_>) -> Result<Usage> {
        if held.record.group().is_some() {
            // The kernel knows only the sum of the group.
            let upper = held.record.upper(held.directory);
            return self.walks.usage(held.id, &upper);
        }
        let usage = self.get(Self::project(held)?)?;
        Ok(Usage {
            bytes: usage.bytes,
            inodes: usage.inodes,
        })
    }

    fn charge(&self, held: &Held<'_>) -> Result<Option<Charge>> {
        let project_quota::Usage {
            bytes,
            inodes,
            limits,
        } = self.get(Self::project(held)?)?;
        Ok(Some(Charge {
            usage: Usage { bytes, inodes },
            bytes_max: limits.bytes_hard.map(NonZeroU64::get),
            bytes_soft: limits.bytes_soft.map(NonZeroU64::get),
            inodes_max: limits.inodes_hard.map(NonZeroU64::get),
        }))
    }

    fn told_device(&self) -> Result<Option<Device>> {
        let about = fs::metadata(&self.root).map_err(Error::io("look at", &self.root))?;
        Ok(Some(Device::of(about.dev())))
    }

    fn commit(&self, held: &Held<'_>) -> Result<Closed> {
        let record = held.record.clone();
        if record.group().is_some() {
            self.walks.forget(held.id);
            let usage = disk_usage::of(&record.upper(held.directory))?;
            return Ok(Closed {
                usage: Some(usage),
                record,
            });
        }
        let usage = Some(self.usage(held)?);
        Ok(Closed { usage, record })
    }

    fn committed(&self, held: &Held<'_>) -> Result<()> {
        // The limit of a group is that of those who can still write.
        if held.record.group().is_some() {
            return Ok(());
        }
        self.set(Self::project(held)?, &Limits::default())
    }

    fn release(&self, _: &Left<'_>) -> Result<()> {
        Ok(())
    }

    fn forget(&self, left: &Left<'_>) -> Result<()> {
        self.walks.forget(left.id);
        let mut groups = self.groups();
        let (project, group) = match left.record {
            Some(Record::Prjquota { project, group }) => (ProjectId(*project), group.clone()),
            Some(_) => return Ok(()),
            // It may have got into a group before it was given up.
            None => match groups.of(left.id) {
                Some((group, project)) => (project, Some(group)),
                None => (self.range.of(left.id), None),
            },
        };
        let rest = group.map(|group| groups.leave(&group, left.id));
        if rest == Some(Rest::Members) {
            return Ok(());
        }
        self.give_back(project, &mut Report::default())
    }

    fn recover(&self, kept: &[Kept<'_>]) -> Result<Report> {
        self.keep_outside()?;
        let mut groups = self.groups();
        let owned = owned(kept, &mut groups);
        let mut report = Report::default();
        let mut in_force = self.in_force()?;
        for (project, limits) in owned {
            let limits = rounded(limits);
            let usage = match in_force.remove(&project) {
                Some(usage) => usage,
                None => self.get(project)?,
            };
            if usage.limits != limits {
                self.set(project, &limits)?;
                report.corrected += 1;
            }
        }
        for project in in_force.into_keys() {
            self.give_back(project, &mut report)?;
        }
        Ok(report)
    }

    fn sweep(&self) -> Result<Report> {
        let mut report = Report::default();
        let strays: Vec<_> = self.strays().iter().copied().collect();
        for project in strays {
            self.give_back(project, &mut report)?;
        }
        Ok(report)
    }

    fn quarantined(&self) -> usize {
        self.strays().len()
    }

    fn audit(&self, held: &Held<'_>) -> Result<Audit> {
        escape::audit(&held.record.upper(held.directory), Self::project(held)?)
    }
}

/// What the limits should be of each project that has an owner; fills the groups.
fn owned(kept: &[Kept<'_>], groups: &mut Groups<ProjectId>) -> BTreeMap<ProjectId, Limits> {
    let mut owned: BTreeMap<ProjectId, Limits> = BTreeMap::new();
    for Kept { held, limit } in kept {
        let Record::Prjquota { project, group } = held.record else {
            continue;
        };
        let project = ProjectId(*project);
        if let Some(group) = group {
            groups.join(group, project, held.id);
        }
        let limits = owned.entry(project).or_default();
        match limit {
            Some(limit) if limit.mode == Mode::Hard => *limits = limits_of(limit),
            _ => {}
        }
    }
    owned
}

fn limits_of(limit: &Limit) -> Limits {
    if limit.mode != Mode::Hard {
        return Limits::default();
    }
    Limits {
        bytes_hard: limit.bytes.map(crate::limit::Size::bytes),
        bytes_soft: limit.soft_bytes.map(crate::limit::Size::bytes),
        inodes_hard: limit.inodes.map(crate::limit::Inodes::count),
        inodes_soft: None,
    }
}

/// As the kernel reads them back: in blocks of 1024 bytes.
fn rounded(limits: Limits) -> Limits {
    let blocks = |bytes: Option<NonZeroU64>| {
        let up = bytes?.get().div_ceil(1024).saturating_mul(1024);
        // The largest that a quota of 63 bits can hold.
        NonZeroU64::new(up.min((i64::MAX.unsigned_abs() / 1024) * 1024))
    };
    Limits {
        bytes_hard: blocks(limits.bytes_hard),
        bytes_soft: blocks(limits.bytes_soft),
        ..limits
    }
}

/// What is counted in which account cannot be changed: the files are in it.
pub(super) fn same_group(held: &Held<'_>, limit: &Limit) -> Result<()> {
    if limit.mode == Mode::Off || limit.group.as_ref() == held.record.group() {
        return Ok(());
    }
    let shown = |group: Option<&Group>| group.map_or("none".to_owned(), ToString::to_string);
    Err(Error::Invalid(format!(
        "the group of snapshot {held} cannot be changed from {} to {}: it is fixed when the \
         snapshot is made",
        shown(held.record.group()),
        shown(limit.group.as_ref())
    )))
}

/// Why limits would not hold, and what to do.
fn not_enforcing(state: QuotaState, fs: FilesystemKind) -> Option<String> {
    let (name, mount) = match fs {
        FilesystemKind::Ext4 => (
            "ext4",
            "unmounted, `tune2fs -O project,quota DEVICE`, then mount it with -o prjquota",
        ),
        FilesystemKind::Xfs => (
            "xfs",
            "mount it with -o prjquota (not by remounting; for the root file system the kernel \
             parameter rootflags=prjquota)",
        ),
        FilesystemKind::Btrfs => ("btrfs", "the back end btrfs does it there"),
        FilesystemKind::Tmpfs => ("tmpfs", "use a file system on a disk"),
        FilesystemKind::Overlay => ("overlay", "use a file system on a disk"),
        FilesystemKind::Other(_) => ("a file system without it", "use ext4, xfs or btrfs"),
    };
    match state {
        QuotaState::Enforcing => None,
        QuotaState::Off => Some(format!("{name} without project quota: {mount}")),
        QuotaState::Counting => Some(format!(
            "{name} whose project quota counts but does not limit: {mount}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use snapshot_core::Key;

    use super::*;
    use crate::limit::{Inodes, Size};

    fn limit(bytes: u64) -> Limit {
        Limit {
            mode: Mode::Hard,
            bytes: Size::from_bytes(bytes),
            ..Limit::counted()
        }
    }

    #[test]
    fn limits_are_those_of_hard_mode_alone() {
        let hard = Limit {
            soft_bytes: Size::from_bytes(1000),
            inodes: Inodes::new(7),
            ..limit(5000)
        };
        let limits = rounded(limits_of(&hard));
        assert_eq!(limits.bytes_hard, NonZeroU64::new(5120));
        assert_eq!(limits.bytes_soft, NonZeroU64::new(1024));
        assert_eq!(limits.inodes_hard, NonZeroU64::new(7));
        let account = Limit {
            mode: Mode::Account,
            ..hard
        };
        assert_eq!(limits_of(&account), Limits::default());
        let most = rounded(limits_of(&limit(i64::MAX.unsigned_abs())));
        assert_eq!(most.bytes_hard, NonZeroU64::new((1 << 63) - 1024));
    }

    #[test]
    fn in_a_group_the_last_limit_counts_and_members_without_one_do_not() {
        let record = Record::Prjquota {
            project: 5,
            group: Some(Group {
                namespace: "a".to_owned(),
                name: "b".parse().unwrap(),
            }),
        };
        let (first, second, none) = (limit(1024), limit(2048), Limit::counted());
        let key = Key::new("k").unwrap();
        let kept = |number, limit| Kept {
            held: Held {
                id: SnapshotId(number),
                key: &key,
                directory: Path::new("/"),
                record: &record,
            },
            limit,
        };
        let order = [
            kept(1, Some(&first)),
            kept(2, Some(&second)),
            kept(3, Some(&none)),
            kept(4, None),
        ];
        let mut groups = Groups::default();
        let owned = owned(&order, &mut groups);
        assert_eq!(owned.len(), 1);
        assert_eq!(owned[&ProjectId(5)], limits_of(&second));
        let group = record.group().unwrap();
        assert_eq!(groups.account(group), Some(ProjectId(5)));
        for (member, rest) in [
            (1, Rest::Members),
            (2, Rest::Members),
            (3, Rest::Members),
            (4, Rest::Nobody),
        ] {
            assert_eq!(groups.leave(group, SnapshotId(member)), rest);
        }
    }

    #[test]
    fn a_group_cannot_be_changed() {
        let record = Record::Prjquota {
            project: 5,
            group: None,
        };
        let key = Key::new("default/7/web").unwrap();
        let held = Held {
            id: SnapshotId(1),
            key: &key,
            directory: Path::new("/"),
            record: &record,
        };
        same_group(&held, &limit(1)).unwrap();
        let mut other = limit(1);
        other.group = Some(Group {
            namespace: "a".to_owned(),
            name: "b".parse().unwrap(),
        });
        let error = same_group(&held, &other).unwrap_err().to_string();
        let whose = "the group of snapshot \"default/7/web\" (number 1)";
        assert!(error.contains(whose), "{error}");
        assert!(error.contains("from none to a/b"), "{error}");
    }

    #[test]
    fn a_root_without_quota_is_refused_with_what_to_do() {
        let error = Prjquota::open(Path::new("/proc"), ProjectRange::default()).unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error}");
        for fs in [
            FilesystemKind::Ext4,
            FilesystemKind::Xfs,
            FilesystemKind::Btrfs,
            FilesystemKind::Tmpfs,
            FilesystemKind::Overlay,
            FilesystemKind::Other(7),
        ] {
            assert_eq!(not_enforcing(QuotaState::Enforcing, fs), None);
            let off = not_enforcing(QuotaState::Off, fs).unwrap();
            assert!(off.contains("without"), "{off}");
            let counting = not_enforcing(QuotaState::Counting, fs).unwrap();
            assert!(counting.contains("does not limit"), "{counting}");
        }
    }
}
