//! Quota groups of btrfs: both directories of a snapshot are in a subvolume of its own, which the
//! kernel counts from the start and removes at once.
//!
//! Simple quota is switched on where there is none. Classic quota that is on is used and never
//! switched off. Metadata counts, inodes are not limited, and df(1) shows the whole disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    num::NonZeroU64,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::libc;
use snapshot_core::{Error, Result, SnapshotId, Usage};
use sys::btrfs::{
    self, LiveQgroups, Qgroup, QgroupId, QgroupLimits, QuotaKind, QuotaMode, SubvolumeId,
};

use super::{
    Abilities, Backend, Charge, Closed, Counting, Full, Held, Kept, Kind, Left, Record, Report,
    Resize, SharedQgroup, Stray, Support, directories, disk_usage,
    groups::{Groups, Rest},
    prjquota::same_group,
};
use crate::limit::{Group, Limit, Mode};

/// The numbers of our groups in level 1 begin here, so that they are told from a user's.
const GROUPS_FIRST: u64 = 1 << 46;
/// And end here.
const GROUPS_LAST: u64 = (1 << 47) - 1;

/// The quota of the btrfs that a root is on.
#[derive(Debug)]
pub struct Btrfs {
    root: PathBuf,
    open: File,
    mode: QuotaMode,
    /// `None` before kernel 5.9, or where sysfs is not mounted.
    live: Option<LiveQgroups>,
    groups: Mutex<Groups<QgroupId>>,
    /// Groups whose subvolume or members may not be gone yet.
    strays: Mutex<BTreeSet<QgroupId>>,
}

impl Btrfs {
    /// Takes the quota of the file system that `root` is on, switching simple quota on if there is
    /// none.
    ///
    /// # Errors
    /// [`Error::Precondition`] with what to do when limits cannot hold there.
    pub fn open(root: &Path) -> Result<Self> {
        let open = directories::open(root)?;
        if !btrfs::is_btrfs(&open).map_err(Error::io("look at", root))? {
            let root = root.display();
            return Err(Error::Precondition(format!("{root} is not on btrfs")));
        }
        if mode(&open, root)? == QuotaMode::Off {
            enable(&open, root)?;
        }
        let mode = mode(&open, root)?;
        if mode == QuotaMode::ClassicStale {
            tracing::warn!(
                root = %root.display(),
                "the numbers of btrfs's quota are wrong, and limits may not hold, until `btrfs quota \
                 rescan` has run"
            );
        }
        Ok(Self {
            root: root.to_owned(),
            live: LiveQgroups::of(&open).ok(),
            open,
            mode,
            groups: Mutex::default(),
            strays: Mutex::default(),
        })
    }

    /// What cannot be had here.
    fn check(&self, limit: &Limit) -> Result<()> {
        let refuse = |what: &str| {
            Err(Error::Invalid(format!(
                "btrfs cannot {what}: use the back end prjquota, pool or image"
            )))
        };
        if limit.mode == Mode::Hard && limit.inodes.is_some() {
            return refuse("limit inodes");
        }
        if limit.mode == Mode::Hard && limit.soft_bytes.is_some() {
            return refuse("have a soft limit");
        }
        if limit.group.is_some() && self.mode != QuotaMode::Simple {
            return refuse("share limits with its classic quota");
        }
        Ok(())
    }

    /// Makes the subvolume, in its group from the start.
    fn fill(&self, directory: &Path, limit: &Limit) -> Result<SubvolumeId> {
        let parent = directories::open(directory)?;
        let path = directory.join(Record::SEPARATE);
        match btrfs::create_subvolume(&parent, OsStr::new(Record::SEPARATE)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.map_err(Error::io("make subvolume", &path))?,
        }
        let open = directories::open(&path)?;
        let subvolume = btrfs::subvolume_of(&open).map_err(Error::io("look at", &path))?;
        if limit.group.is_none() && limit.mode == Mode::Hard {
            self.set(QgroupId::of_subvolume(subvolume), limits_of(limit))?;
        }
        directories::make(&path)?;
        Ok(subvolume)
    }

    /// The same, under the limit of a group, which the first member makes.
    fn create_in_group(
        &self,
        directory: &Path,
        id: SnapshotId,
        limit: &Limit,
        group: &Group,
    ) -> Result<Record> {
        // Held to the end: the group must not lose its last member meanwhile.
        let mut groups = lock(&self.groups);
        let qgroup = match groups.account(group) {
            Some(qgroup) => qgroup,
            None => self.make_group(id)?,
        };
        if limit.mode == Mode::Hard {
            self.set(qgroup, limits_of(limit))?;
        }
        let subvolume = self.fill(directory, limit)?;
        let member = QgroupId::of_subvolume(subvolume);
        match btrfs::assign(&self.open, member, qgroup) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => drop(other.map_err(Error::io("share a quota group of", directory))?),
        }
        groups.join(group, qgroup, id);
        Ok(Record::Btrfs {
            subvolume: subvolume.0,
            shared: Some(SharedQgroup {
                number: qgroup.number(),
                group: group.clone(),
            }),
        })
    }

    fn make_group(&self, id: SnapshotId) -> Result<QgroupId> {
        let qgroup = our_group(id);
        match btrfs::create_qgroup(&self.open, qgroup) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                Err(Error::Precondition(format!(
                    "quota group {qgroup} on {}, meant for the group of the new snapshot \
                     (number {id}), is somebody else's: give each root that uses groups a btrfs of its own",
                    self.root.display()
                )))
            }
            other => {
                other.map_err(Error::io("make a quota group on", &self.root))?;
                Ok(qgroup)
            }
        }
    }

    fn set(&self, qgroup: QgroupId, limits: QgroupLimits) -> Result<()> {
        btrfs::set_qgroup_limits(&self.open, qgroup, limits)
            .map_err(Error::io("limit a quota group on", &self.root))
    }

    /// None without quota, too: then there is no tree to look into.
    fn get(&self, qgroup: QgroupId) -> Result<Option<Qgroup>> {
        match btrfs::qgroup(&self.open, qgroup) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map_err(Error::io("read a quota group on", &self.root)),
        }
    }

    /// What a group uses now, with what was not committed yet where the kernel tells that.
    fn counted(&self, qgroup: QgroupId) -> Result<Option<(Usage, QgroupLimits)>> {
        let Some(counted) = self.get(qgroup)? else {
            return Ok(None);
        };
        let live = match &self.live {
            Some(live) => live
                .referenced(qgroup)
                .map_err(Error::io("read the sysfs of", &self.root))?,
            None => None,
        };
        let usage = Usage {
            bytes: live.unwrap_or(counted.referenced),
            inodes: 0,
        };
        Ok(Some((usage, counted.limits)))
    }

    /// The subvolume of a record of ours, and the limit that it shares.
    fn account<'a>(held: &Held<'a>) -> Result<(QgroupId, Option<&'a SharedQgroup>)> {
        match held.record {
            Record::Btrfs { subvolume, shared } => {
                let subvolume = SubvolumeId(*subvolume);
                Ok((QgroupId::of_subvolume(subvolume), shared.as_ref()))
            }
            other => Err(Error::Precondition(format!(
                "snapshot {held} is in no subvolume: {other:?}"
            ))),
        }
    }

    /// Takes a snapshot out of its group; the last one takes the group away.
    fn leave(&self, member: QgroupId, shared: &SharedQgroup, id: SnapshotId) -> Result<()> {
        let mut groups = lock(&self.groups);
        let qgroup = group_of(shared);
        match btrfs::unassign(&self.open, member, qgroup) {
            // Done before, or the member was dropped.
            Err(error) if is_absent(&error) => {}
            other => drop(other.map_err(Error::io("leave a quota group on", &self.root))?),
        }
        if groups.leave(&shared.group, id) == Rest::Nobody {
            self.give_back(qgroup, &mut Report::default())?;
        }
        Ok(())
    }

    /// Puts a snapshot into the group that it is said to be in: a commit that was interrupted may
    /// have taken it out, and the group away.
    fn rejoin(&self, own: QgroupId, qgroup: QgroupId) -> Result<Rejoined> {
        let is_new = |result: std::io::Result<()>| match result {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            other => other.map(|()| true),
        };
        let made = is_new(btrfs::create_qgroup(&self.open, qgroup))
            .map_err(Error::io("make a quota group on", &self.root))?;
        let joined = is_new(btrfs::assign(&self.open, own, qgroup).map(drop))
            .map_err(Error::io("share a quota group on", &self.root))?;
        Ok(if made || joined {
            Rejoined::Anew
        } else {
            Rejoined::WasIn
        })
    }

    /// Removes a group that nobody owns, or remembers it while the kernel still needs it.
    fn give_back(&self, qgroup: QgroupId, report: &mut Report) -> Result<()> {
        let is_there = qgroup.level() == 0
            && btrfs::subvolume_exists(&self.open, SubvolumeId(qgroup.number()))
                .map_err(Error::io("look for a subvolume on", &self.root))?;
        let removed = if is_there {
            Err(libc::EBUSY.into())
        } else {
            btrfs::destroy_qgroup(&self.open, qgroup).map_err(|error| error.raw_os_error())
        };
        match removed {
            Ok(()) => {
                report.cleared += 1;
                lock(&self.strays).remove(&qgroup);
            }
            // Newer kernels remove it with the subvolume.
            Err(Some(libc::ENOENT)) => {
                lock(&self.strays).remove(&qgroup);
            }
            Err(Some(libc::EBUSY)) => {
                lock(&self.strays).insert(qgroup);
                // One of a subvolume that is being dropped goes by itself.
                if qgroup.level() > 0 {
                    let bytes = self.get(qgroup)?.map_or(0, |usage| usage.referenced);
                    report.strays.push(Stray {
                        what: format!("quota group {qgroup}"),
                        usage: Usage { bytes, inodes: 0 },
                    });
                }
            }
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO));
                return Err(Error::io("remove a quota group of", &self.root)(error));
            }
        }
        Ok(())
    }

    fn all(&self, from: QgroupId, to: QgroupId) -> Result<Vec<(QgroupId, Qgroup)>> {
        btrfs::qgroups(&self.open, from..=to)
            .map_err(Error::io("list the quota groups of", &self.root))
    }

    /// Groups that an interrupted removal left. Those of level 0 are whoever's subvolume it was:
    /// its number never comes again, so nobody can miss them.
    fn clear_unowned(&self, owned: &BTreeMap<QgroupId, QgroupLimits>) -> Result<Report> {
        let mut report = Report::default();
        if self.mode != QuotaMode::Simple {
            return Ok(report);
        }
        let level = |level, number| QgroupId::new(level, number).expect("below 48 bits");
        for (qgroup, usage) in self.all(level(0, 256), level(0, (1 << 48) - 1))? {
            let subvolume = SubvolumeId(qgroup.number());
            let gone = !btrfs::subvolume_exists(&self.open, subvolume)
                .map_err(Error::io("look for a subvolume on", &self.root))?;
            if gone && usage.referenced == 0 {
                self.give_back(qgroup, &mut report)?;
            }
        }
        for (qgroup, _) in self.all(level(1, GROUPS_FIRST), level(1, GROUPS_LAST))? {
            if !owned.contains_key(&qgroup) {
                self.give_back(qgroup, &mut report)?;
            }
        }
        Ok(report)
    }
}

/// What a snapshot was found to be.
#[derive(Debug, PartialEq, Eq)]
enum Rejoined {
    WasIn,
    Anew,
}

impl Backend for Btrfs {
    fn kind(&self) -> Kind {
        Kind::Btrfs
    }

    fn abilities(&self) -> Abilities {
        let groups = match self.mode {
            QuotaMode::Simple => Support::Yes,
            _ => Support::No,
        };
        Abilities {
            resize: Resize::Both,
            inodes: Support::No,
            soft: Support::No,
            groups,
            full: Full::QuotaExceeded,
            df: Support::No,
            counting: Counting::Delayed,
        }
    }

    fn create(&self, directory: &Path, id: SnapshotId, limit: &Limit) -> Result<Record> {
        self.check(limit)?;
        if limit.mode == Mode::Off {
            directories::make(directory)?;
            return Ok(Record::Plain);
        }
        if let Some(group) = &limit.group {
            return self.create_in_group(directory, id, limit, group);
        }
        Ok(Record::Btrfs {
            subvolume: self.fill(directory, limit)?.0,
            shared: None,
        })
    }

    fn set_limit(&self, held: &Held<'_>, limit: &Limit) -> Result<()> {
        self.check(limit)?;
        same_group(held, limit)?;
        let (own, shared) = Self::account(held)?;
        self.set(shared.map_or(own, group_of), limits_of(limit))
    }

    fn usage(&self, held: &Held<'_>) -> Result<Usage> {
        let (own, _) = Self::account(held)?;
        match self.counted(own)? {
            Some((usage, _)) => Ok(usage),
            // Somebody switched quota off, which the start of the daemon tells of: the numbers of
            // layers are still wanted.
            None => disk_usage::of(&held.record.upper(held.directory)),
        }
    }

    fn charge(&self, held: &Held<'_>) -> Result<Option<Charge>> {
        let (own, shared) = Self::account(held)?;
        let counted = self.counted(shared.map_or(own, group_of))?;
        Ok(counted.map(|(usage, limits)| Charge {
            usage,
            bytes_max: limits.referenced.map(NonZeroU64::get),
            ..Charge::default()
        }))
    }

    fn commit(&self, held: &Held<'_>) -> Result<Closed> {
        let (own, shared) = Self::account(held)?;
        if let Some(shared) = shared {
            self.leave(own, shared, held.id)?;
        }
        Ok(Closed {
            // The kernel has counted metadata when it next commits. To wait for that here would write
            // all that anybody left to be written, within containerd's transaction.
            usage: None,
            record: Record::Btrfs {
                subvolume: own.number(),
                shared: None,
            },
        })
    }

    fn committed(&self, held: &Held<'_>) -> Result<()> {
        let (own, _) = Self::account(held)?;
        self.set(own, QgroupLimits::default())
    }

    fn release(&self, left: &Left<'_>) -> Result<()> {
        let path = left.directory.join(Record::SEPARATE);
        if !path.is_dir() {
            return Ok(());
        }
        let open = directories::open(&path)?;
        let looked = btrfs::is_subvolume_root(&open).map_err(Error::io("look at", &path))?;
        if !looked {
            return Ok(());
        }
        let subvolume = btrfs::subvolume_of(&open).map_err(Error::io("look at", &path))?;
        let own = QgroupId::of_subvolume(subvolume);
        let shared = match left.record {
            Some(Record::Btrfs { shared, .. }) => shared.clone(),
            Some(_) => None,
            // It may have got into a group before it was given up.
            None => lock(&self.groups).of(left.id).map(SharedQgroup::from),
        };
        if let Some(shared) = shared {
            self.leave(own, &shared, left.id)?;
        }
        lock(&self.strays).insert(own);
        let parent = directories::open(left.directory)?;
        btrfs::destroy_subvolume(&parent, OsStr::new(Record::SEPARATE))
            .map_err(Error::io("remove subvolume", &path))
    }

    fn forget(&self, left: &Left<'_>) -> Result<()> {
        let mut report = Report::default();
        match left.record {
            Some(Record::Btrfs { subvolume, shared }) => {
                let own = QgroupId::of_subvolume(SubvolumeId(*subvolume));
                if let Some(shared) = shared {
                    self.leave(own, shared, left.id)?;
                }
                self.give_back(own, &mut report)
            }
            Some(_) => Ok(()),
            // It may have been about to make a group.
            None if self.mode == QuotaMode::Simple => {
                self.give_back(our_group(left.id), &mut report)
            }
            None => Ok(()),
        }
    }

    fn recover(&self, kept: &[Kept<'_>]) -> Result<Report> {
        let owned = owned(kept, &mut lock(&self.groups));
        let mut corrected = 0;
        for Kept { held, .. } in kept {
            if let Record::Btrfs {
                subvolume,
                shared: Some(shared),
            } = held.record
            {
                let own = QgroupId::of_subvolume(SubvolumeId(*subvolume));
                corrected += u64::from(self.rejoin(own, group_of(shared))? == Rejoined::Anew);
            }
        }
        for (qgroup, limits) in &owned {
            match self.get(*qgroup)? {
                Some(now) if now.limits == *limits => {}
                Some(_) => {
                    self.set(*qgroup, *limits)?;
                    corrected += 1;
                }
                None => tracing::warn!(
                    %qgroup,
                    root = %self.root.display(),
                    "a quota group is gone, and with it a limit: was quota switched off?"
                ),
            }
        }
        Ok(Report {
            corrected,
            ..self.clear_unowned(&owned)?
        })
    }

    fn sweep(&self) -> Result<Report> {
        let mut report = Report::default();
        let strays: Vec<_> = lock(&self.strays).iter().copied().collect();
        for qgroup in strays {
            self.give_back(qgroup, &mut report)?;
        }
        Ok(report)
    }

    fn quarantined(&self) -> usize {
        lock(&self.strays).len()
    }
}

fn mode(open: &File, root: &Path) -> Result<QuotaMode> {
    btrfs::quota_mode(open.as_fd()).map_err(Error::io("ask for the quota mode of", root))
}

fn enable(open: &File, root: &Path) -> Result<()> {
    match btrfs::enable_quota(open.as_fd(), QuotaKind::Simple) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let root = root.display();
            Err(Error::Precondition(format!(
                "{root} is on btrfs without quota, and this kernel has no simple quota (6.7 has); \
                 `btrfs quota enable {root}` switches classic quota on, which is slow with many \
                 snapshots"
            )))
        }
        other => other.map_err(Error::io("switch simple quota on for", root)),
    }
}

/// What the limits should be of each group that has an owner; fills the groups.
fn owned(kept: &[Kept<'_>], groups: &mut Groups<QgroupId>) -> BTreeMap<QgroupId, QgroupLimits> {
    let mut owned: BTreeMap<QgroupId, QgroupLimits> = BTreeMap::new();
    for Kept { held, limit } in kept {
        let Record::Btrfs { subvolume, shared } = held.record else {
            continue;
        };
        let own = QgroupId::of_subvolume(SubvolumeId(*subvolume));
        owned.entry(own).or_default();
        let limited = match shared {
            Some(shared) => {
                groups.join(&shared.group, group_of(shared), held.id);
                owned.entry(group_of(shared)).or_default()
            }
            None => owned.entry(own).or_default(),
        };
        match limit {
            Some(limit) if limit.mode == Mode::Hard => *limited = limits_of(limit),
            _ => {}
        }
    }
    owned
}

fn limits_of(limit: &Limit) -> QgroupLimits {
    let hard = limit.mode == Mode::Hard;
    QgroupLimits {
        referenced: limit.bytes.filter(|_| hard).map(crate::limit::Size::bytes),
        exclusive: None,
    }
}

/// The group that a snapshot makes when it is the first of its name.
fn our_group(id: SnapshotId) -> QgroupId {
    let number = GROUPS_FIRST + id.0 % (GROUPS_LAST - GROUPS_FIRST + 1);
    QgroupId::new(1, number).expect("below 48 bits")
}

impl From<(Group, QgroupId)> for SharedQgroup {
    fn from((group, qgroup): (Group, QgroupId)) -> Self {
        Self {
            number: qgroup.number(),
            group,
        }
    }
}

fn group_of(shared: &SharedQgroup) -> QgroupId {
    // A record with a larger one is not ours; the kernel will not know it.
    QgroupId::new(1, shared.number & ((1 << 48) - 1)).expect("below 48 bits")
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insertion or removal: a panic elsewhere leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_groups_are_told_from_others() {
        assert_eq!(our_group(SnapshotId(7)).to_string(), "1/70368744177671");
        let last = our_group(SnapshotId((1 << 46) - 1));
        assert_eq!(last.number(), GROUPS_LAST);
        assert_eq!(our_group(SnapshotId(1 << 46)).number(), GROUPS_FIRST);
    }

    #[test]
    fn a_root_elsewhere_is_refused() {
        let error = Btrfs::open(Path::new("/proc")).unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error}");
    }
}
