//! What a back end must give, and what it says about itself.

use std::{fmt, path::Path, str::FromStr};

use nix::sys::stat::{major, minor};
use snapshot_core::{Key, Result, SnapshotId, Usage};

use super::Record;
use crate::limit::Limit;

/// The ways to make a limit hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Project quota of the ext4 or xfs that the root is on.
    Prjquota,
    /// Quota groups of the btrfs that the root is on.
    Btrfs,
    /// Project quota of an xfs in one sparse image that holds all snapshots.
    Pool,
    /// A sparse image for each limited snapshot.
    Image,
    /// A tmpfs for each limited snapshot: what it holds is gone with a reboot.
    Tmpfs,
    /// No limits: one that is asked for is refused.
    None,
}

impl Kind {
    /// All, in the order in which one is chosen.
    pub const ALL: [Self; 6] = [
        Self::Prjquota,
        Self::Btrfs,
        Self::Pool,
        Self::Image,
        Self::Tmpfs,
        Self::None,
    ];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prjquota => "prjquota",
            Self::Btrfs => "btrfs",
            Self::Pool => "pool",
            Self::Image => "image",
            Self::Tmpfs => "tmpfs",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |kind: &Self| kind.name() == text;
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no back end; there are {names}")
        })
    }
}

/// Which changes of a limit are possible while the snapshot is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Up and down, in microseconds; below the usage too: then only deleting works.
    Both,
    /// Up, and down to what is used.
    AboveUsage,
    /// Up only.
    Grow,
    /// None.
    Fixed,
}

/// Whether something can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It can.
    Yes,
    /// It cannot: asking for it is refused.
    No,
}

/// What writing beyond the limit fails with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// EDQUOT.
    QuotaExceeded,
    /// ENOSPC.
    NoSpace,
    /// It does not fail.
    Never,
}

/// How usage is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// The kernel tells it, exactly, however many files there are.
    Exact,
    /// The kernel tells it; metadata, and before 5.9 all of it, as of its last commit, up to 30 s ago.
    Delayed,
    /// By walking; answered from the last walk for ten times as long as that took.
    Walk,
}

/// What a back end can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Changes of a limit in use.
    pub resize: Resize,
    /// Limits on inodes.
    pub inodes: Support,
    /// Soft limits with the kernel's grace time.
    pub soft: Support,
    /// One limit for several snapshots.
    pub groups: Support,
    /// What a full snapshot's writer gets.
    pub full: Full,
    /// Whether df(1) in the container shows the limit.
    pub df: Support,
    /// How usage of limited snapshots is known.
    pub counting: Counting,
}

/// A snapshot that is there. Messages name it by its key, which people know, and its number, by
/// which its directory is found.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Its number.
    pub id: SnapshotId,
    /// Its name.
    pub key: &'a Key,
    /// Its directory.
    pub directory: &'a Path,
    /// What was kept with it.
    pub record: &'a Record,
}

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} (number {})", self.key.as_str(), self.id)
    }
}

/// A snapshot that is there when the daemon starts.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// Which.
    pub held: Held<'a>,
    /// What it may hold; `None` when it is committed, or a view.
    pub limit: Option<&'a Limit>,
}

/// What is left of a snapshot that is going.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// Its number.
    pub id: SnapshotId,
    /// Its directory, under another name already.
    pub directory: &'a Path,
    /// What was kept with it; `None` when it was never finished.
    pub record: Option<&'a Record>,
}

/// What a commit leaves.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed {
    /// What the layer holds; `None` when [`Backend::usage`] tells that later too, without a walk.
    pub usage: Option<Usage>,
    /// What to keep with it from now on.
    pub record: Record,
}

/// Something that uses or limits space in our name and belongs to no snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// What, as `project 1073741831`.
    pub what: String,
    /// What it uses; it goes when that is nothing.
    pub usage: Usage,
}

/// What was put right at a start or a sweep.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Limits that were not what they should be.
    pub corrected: u64,
    /// What had no owner and no usage any more, and is gone.
    pub cleared: u64,
    /// What has no owner and still usage: files that are deleted but open, or an escape. It is
    /// looked at again at the next sweep.
    pub strays: Vec<Stray>,
    /// Snapshots that may hold more than was decided, and how many bytes: what holds them cannot be
    /// made smaller again.
    pub larger: Vec<(SnapshotId, u64)>,
}

/// What counts against a limit, and the limit that is in force, as the kernel has them now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charge {
    /// Of the snapshot; of a group, the sum.
    pub usage: Usage,
    /// Most bytes; `None` while nothing limits them.
    pub bytes_max: Option<u64>,
    /// Bytes above which the kernel's grace time runs.
    pub bytes_soft: Option<u64>,
    /// Most inodes.
    pub inodes_max: Option<u64>,
}

/// A file system, as the kernel names it in what it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// Takes the number apart that stat(2) gives.
    #[must_use]
    pub fn of(number: u64) -> Self {
        let part = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
        Self {
            major: part(major(number)),
            minor: part(minor(number)),
        }
    }
}

/// Whether a snapshot is still counted where it should be, and holds what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audit {
    /// It is, or the back end leaves no way out.
    Sound,
    /// Somebody in the container took it out of its account; it was put back, and what was
    /// written meanwhile is not counted.
    Escaped(String),
    /// What was written to it was lost, so it cannot become a layer: says how that was noticed.
    LostWrites(String),
}

/// One way to make limits hold. Every method may block; each may be called again after a crash in
/// the middle of it. Calls for one snapshot are never concurrent, those for different ones are.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Which.
    fn kind(&self) -> Kind;

    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// Fills the empty directory of a writable snapshot.
    ///
    /// # Errors
    /// [`snapshot_core::Error::Invalid`] for a limit that cannot hold here, before anything is made;
    /// [`snapshot_core::Error::Exhausted`] without room on the host; those of the system.
    fn create(&self, directory: &Path, id: SnapshotId, limit: &Limit) -> Result<Record>;

    /// Puts back in place what a reboot took away; cheap when nothing is missing.
    ///
    /// # Errors
    /// What keeps the snapshot from being mounted.
    fn attach(&self, _: &Held<'_>) -> Result<()> {
        Ok(())
    }

    /// Makes another limit hold, but for what [`Backend::settle`] does. To be called when what was
    /// decided has changed, and not else: in a group the last call counts.
    ///
    /// # Errors
    /// [`snapshot_core::Error::Invalid`] for a change that cannot be made.
    fn set_limit(&self, held: &Held<'_>, limit: &Limit) -> Result<()>;

    /// Does what could not be taken back, when the limit that was set is certain to count.
    ///
    /// # Errors
    /// Those of the system; the limit before is set again then.
    fn settle(&self, _: &Held<'_>, _: &Limit) -> Result<()> {
        Ok(())
    }

    /// What the snapshot holds now.
    ///
    /// # Errors
    /// Those of the system.
    fn usage(&self, held: &Held<'_>) -> Result<Usage>;

    /// What counts against the snapshot's limit, by a few system calls however many files there are;
    /// `None` where only a walk could tell, or nobody can write now. It changes nothing, and may
    /// run beside any other call.
    ///
    /// # Errors
    /// Those of the system.
    fn charge(&self, _: &Held<'_>) -> Result<Option<Charge>> {
        Ok(None)
    }

    /// The file system of which the kernel tells by netlink when a project is full; `None` where
    /// it tells nothing.
    ///
    /// # Errors
    /// Those of the system.
    fn told_device(&self) -> Result<Option<Device>> {
        Ok(None)
    }

    /// Nobody writes to it any more, and its contents stay. What is needed to write to it stays, too,
    /// until the commit is stored, and its limit: within containerd's transaction nothing is done
    /// that need not be.
    ///
    /// # Errors
    /// Those of the system; it can still be written then.
    fn commit(&self, held: &Held<'_>) -> Result<Closed>;

    /// The commit is stored: what the layer does not need goes, its limit with it. `held` is as it
    /// was before.
    ///
    /// # Errors
    /// Those of the system; [`Backend::recover`] finds what is left.
    fn committed(&self, _: &Held<'_>) -> Result<()> {
        Ok(())
    }

    /// The commit could not be stored: what was made for it goes.
    ///
    /// # Errors
    /// Those of the system; the next commit does not mind what is left.
    fn uncommitted(&self, _: &Held<'_>) -> Result<()> {
        Ok(())
    }

    /// Takes away what keeps the directory from being deleted, or is faster gone than by walking.
    ///
    /// # Errors
    /// Those of the system; it is called again.
    fn release(&self, left: &Left<'_>) -> Result<()>;

    /// The directory is gone: gives back what outlives it.
    ///
    /// # Errors
    /// Those of the system; [`Backend::recover`] finds what is left.
    fn forget(&self, left: &Left<'_>) -> Result<()>;

    /// Makes what is in force equal to what is kept, at the start of the daemon. `kept` is in the
    /// order in which labels were set.
    ///
    /// # Errors
    /// Those of the system; the daemon does not start.
    fn recover(&self, kept: &[Kept<'_>]) -> Result<Report>;

    /// Looks again at what could not be given back.
    ///
    /// # Errors
    /// Those of the system.
    fn sweep(&self) -> Result<Report> {
        Ok(Report::default())
    }

    /// How much could not be given back yet.
    fn quarantined(&self) -> usize {
        0
    }

    /// Whether a snapshot is still counted where it should be, where it puts it back, and holds what
    /// was written.
    ///
    /// # Errors
    /// Those of the system.
    fn audit(&self, _: &Held<'_>) -> Result<Audit> {
        Ok(Audit::Sound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_by_their_names() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "zfs".parse::<Kind>().unwrap_err();
        assert!(error.contains("prjquota, btrfs, pool"), "{error}");
    }
}
