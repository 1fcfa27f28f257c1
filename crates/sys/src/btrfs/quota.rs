//! Quota groups: what a subvolume, or a group of them, uses and may use.
//!
//! Two ways of counting. Simple quota (kernel 6.7) counts an extent for the subvolume that wrote
//! it, which costs nothing; classic quota counts what is shared too, which is slow where there are
//! many snapshots. Must not switch one into the other: that is the administrator's.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use super::search::{self, Key, QUOTA_TREE, numbers};
use super::{MAGIC, SubvolumeId};
use crate::ioctl;

/// Number of a quota group: a level and, in it, a number. Those of level 0 are the subvolumes'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QgroupId(u64);

impl QgroupId {
    /// The last of all.
    pub const MAX: Self = Self(u64::MAX);

    /// The group of one subvolume, made with it.
    #[must_use]
    pub fn of_subvolume(id: SubvolumeId) -> Self {
        Self(id.0)
    }

    /// The group `level/number`; `None` when the number has more than 48 bits.
    #[must_use]
    pub fn new(level: u16, number: u64) -> Option<Self> {
        (number >> 48 == 0).then(|| Self(u64::from(level) << 48 | number))
    }

    /// 0 for a subvolume's.
    #[must_use]
    pub fn level(self) -> u16 {
        u16::try_from(self.0 >> 48).expect("16 bits are left")
    }

    /// The number in its level.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

impl fmt::Display for QgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.level(), self.number())
    }
}

/// A way of counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaKind {
    /// Each extent for who wrote it.
    Simple,
    /// Each extent for all who see it.
    Classic,
}

/// What a file system counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaMode {
    /// Nothing.
    Off,
    /// By simple quota.
    Simple,
    /// By classic quota.
    Classic,
    /// By classic quota, but numbers are wrong until a rescan has run.
    ClassicStale,
}

/// Whether numbers are right after a change of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accounting {
    /// They are.
    Exact,
    /// Not until a rescan (classic quota, and the member had data).
    Stale,
}

/// Most that a group may use, in bytes; `None` is no limit. Beyond it writing is EDQUOT.
///
/// Metadata counts: also empty files and directories use it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QgroupLimits {
    /// Of what the group sees. With simple quota what it wrote.
    pub referenced: Option<NonZeroU64>,
    /// Of what only the group sees. With simple quota the same as `referenced`.
    pub exclusive: Option<NonZeroU64>,
}

/// What a group uses, as of the last commit (30 s ago or less; [`super::sync`] makes one), and
/// may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Qgroup {
    /// Bytes that it sees.
    pub referenced: u64,
    /// Bytes that only it sees.
    pub exclusive: u64,
    /// In force, whatever was committed.
    pub limits: QgroupLimits,
}

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct Control {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct Create {
    create: u64,
    id: u64,
}

/// `struct btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
struct Assign {
    assign: u64,
    member: u64,
    group: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct Limit {
    id: u64,
    flags: u64,
    referenced_max: u64,
    exclusive_max: u64,
    reserved: [u64; 2],
}

const BTRFS_IOC_QUOTA_CTL: libc::Ioctl =
    nix::request_code_readwrite!(MAGIC, 40, size_of::<Control>());
const BTRFS_IOC_QGROUP_ASSIGN: libc::Ioctl =
    nix::request_code_write!(MAGIC, 41, size_of::<Assign>());
const BTRFS_IOC_QGROUP_CREATE: libc::Ioctl =
    nix::request_code_write!(MAGIC, 42, size_of::<Create>());
const BTRFS_IOC_QGROUP_LIMIT: libc::Ioctl = nix::request_code_read!(MAGIC, 43, size_of::<Limit>());

/// BTRFS_QUOTA_CTL_ENABLE, _DISABLE, _ENABLE_SIMPLE_QUOTA.
const ENABLE: u64 = 1;
const DISABLE: u64 = 2;
const ENABLE_SIMPLE: u64 = 4;

/// BTRFS_QGROUP_LIMIT_MAX_RFER, _MAX_EXCL.
const MAX_REFERENCED: u64 = 1;
const MAX_EXCLUSIVE: u64 = 2;

/// Kinds of items in the quota tree.
const STATUS_ITEM: u8 = 240;
const INFO_ITEM: u8 = 242;
const LIMIT_ITEM: u8 = 244;

/// BTRFS_QGROUP_STATUS_FLAG_ON, _INCONSISTENT, _SIMPLE_MODE.
const STATUS_ON: u64 = 1;
const STATUS_INCONSISTENT: u64 = 4;
const STATUS_SIMPLE: u64 = 8;

/// How quota is counted, from the status item of the quota tree, which every kernel has
/// (`/sys/fs/btrfs/UUID/qgroups/mode` came with 6.7).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOTTY outside btrfs.
pub fn quota_mode(file: impl AsFd) -> io::Result<QuotaMode> {
    let status = match search::item(file.as_fd(), QUOTA_TREE, key(STATUS_ITEM, QgroupId(0))) {
        Ok(status) => status,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
        Err(error) => return Err(error),
    };
    let flags = status.and_then(|item| numbers(&item));
    Ok(match flags {
        Some([_version, _generation, flags]) if flags & STATUS_ON != 0 => {
            match flags & (STATUS_SIMPLE | STATUS_INCONSISTENT) {
                0 => QuotaMode::Classic,
                STATUS_INCONSISTENT => QuotaMode::ClassicStale,
                _ => QuotaMode::Simple,
            }
        }
        _ => QuotaMode::Off,
    })
}

/// Begins to count (BTRFS_IOC_QUOTA_CTL). Nothing changes where quota is on already, be it of the
/// other kind: ask [`quota_mode`] afterwards. What was written before simple quota began is never
/// counted; classic quota counts it by a rescan in the background.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EINVAL for simple quota before 6.7, EROFS.
pub fn enable_quota(file: impl AsFd, kind: QuotaKind) -> io::Result<()> {
    let command = match kind {
        QuotaKind::Simple => ENABLE_SIMPLE,
        QuotaKind::Classic => ENABLE,
    };
    control(file, command)
}

/// Stops counting, and forgets all groups and limits.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EROFS.
pub fn disable_quota(file: impl AsFd) -> io::Result<()> {
    control(file, DISABLE)
}

fn control(file: impl AsFd, command: u64) -> io::Result<()> {
    let mut control = Control { command, status: 0 };
    // SAFETY: BTRFS_IOC_QUOTA_CTL reads and writes one struct btrfs_ioctl_quota_ctl_args.
    unsafe { ioctl::with(file.as_fd(), BTRFS_IOC_QUOTA_CTL, &mut control) }.map(drop)
}

/// Replaces the limits of a group (BTRFS_IOC_QGROUP_LIMIT), in force when this returns.
///
/// # Errors
/// ENOENT without such a group; ENOTCONN (EINVAL before 5.5) while quota is off; EPERM, EROFS.
pub fn set_qgroup_limits(file: impl AsFd, id: QgroupId, limits: QgroupLimits) -> io::Result<()> {
    // All ones take a limit away.
    let most = |limit: Option<NonZeroU64>| limit.map_or(u64::MAX, NonZeroU64::get);
    let mut limit = Limit {
        id: id.0,
        flags: MAX_REFERENCED | MAX_EXCLUSIVE,
        referenced_max: most(limits.referenced),
        exclusive_max: most(limits.exclusive),
        reserved: [0; 2],
    };
    // SAFETY: BTRFS_IOC_QGROUP_LIMIT reads one struct btrfs_ioctl_qgroup_limit_args.
    unsafe { ioctl::with(file.as_fd(), BTRFS_IOC_QGROUP_LIMIT, &mut limit) }.map(drop)
}

/// What a group uses and may use, by two look-ups in a tree however much is in it; `None` without
/// such a group.
///
/// # Errors
/// ENOENT while quota is off; EPERM without CAP_SYS_ADMIN.
pub fn qgroup(file: impl AsFd, id: QgroupId) -> io::Result<Option<Qgroup>> {
    let fd = file.as_fd();
    let Some(info) = search::item(fd, QUOTA_TREE, key(INFO_ITEM, id))? else {
        return Ok(None);
    };
    let limit = search::item(fd, QUOTA_TREE, key(LIMIT_ITEM, id))?;
    Ok(Some(Qgroup {
        limits: limit.map_or_else(QgroupLimits::default, |item| limits_of(&item)),
        ..usage_of(&info)
    }))
}

/// All groups with these ids, in their order.
///
/// # Errors
/// As [`qgroup`].
pub fn qgroups(
    file: impl AsFd,
    ids: RangeInclusive<QgroupId>,
) -> io::Result<Vec<(QgroupId, Qgroup)>> {
    let fd = file.as_fd();
    let range = |kind| (key(kind, *ids.start()), key(kind, *ids.end()));
    let mut found: Vec<(QgroupId, Qgroup)> = Vec::new();
    search::each(fd, QUOTA_TREE, range(INFO_ITEM), |key, item| {
        found.push((QgroupId(key.offset), usage_of(item)));
    })?;
    search::each(fd, QUOTA_TREE, range(LIMIT_ITEM), |key, item| {
        if let Ok(at) = found.binary_search_by_key(&QgroupId(key.offset), |(id, _)| *id) {
            found[at].1.limits = limits_of(item);
        }
    })?;
    Ok(found)
}

/// Makes a group of level 1 or higher (BTRFS_IOC_QGROUP_CREATE), for several subvolumes to have
/// one limit.
///
/// # Errors
/// EEXIST; EINVAL for level 0 in newer kernels; ENOTCONN (EINVAL before 5.5) while quota is off.
pub fn create_qgroup(file: impl AsFd, id: QgroupId) -> io::Result<()> {
    create(file, 1, id)
}

/// Removes a group and its limits. That of a subvolume can go when the subvolume was dropped:
/// newer kernels remove it themselves then.
///
/// # Errors
/// ENOENT; EBUSY while it has members, and for a subvolume's that is there or still uses space.
pub fn destroy_qgroup(file: impl AsFd, id: QgroupId) -> io::Result<()> {
    create(file, 0, id)
}

fn create(file: impl AsFd, create: u64, id: QgroupId) -> io::Result<()> {
    let mut create = Create { create, id: id.0 };
    // SAFETY: BTRFS_IOC_QGROUP_CREATE reads one struct btrfs_ioctl_qgroup_create_args.
    unsafe { ioctl::with(file.as_fd(), BTRFS_IOC_QGROUP_CREATE, &mut create) }.map(drop)
}

/// Puts a group into one of a higher level (BTRFS_IOC_QGROUP_ASSIGN): what the member uses counts
/// for both, and both limits hold.
///
/// # Errors
/// ENOENT without either, EEXIST, EINVAL when the level is not higher.
pub fn assign(file: impl AsFd, member: QgroupId, group: QgroupId) -> io::Result<Accounting> {
    relate(file, 1, member, group)
}

/// Takes a group out of another.
///
/// # Errors
/// ENOENT when it is not in it.
pub fn unassign(file: impl AsFd, member: QgroupId, group: QgroupId) -> io::Result<Accounting> {
    relate(file, 0, member, group)
}

fn relate(
    file: impl AsFd,
    assign: u64,
    member: QgroupId,
    group: QgroupId,
) -> io::Result<Accounting> {
    let mut assign = Assign {
        assign,
        member: member.0,
        group: group.0,
    };
    // SAFETY: BTRFS_IOC_QGROUP_ASSIGN reads one struct btrfs_ioctl_qgroup_assign_args.
    let answer = unsafe { ioctl::with(file.as_fd(), BTRFS_IOC_QGROUP_ASSIGN, &mut assign) }?;
    Ok(match answer {
        0 => Accounting::Exact,
        _ => Accounting::Stale,
    })
}

fn key(kind: u8, id: QgroupId) -> Key {
    Key {
        object: 0,
        kind,
        offset: id.0,
    }
}

/// Of a struct btrfs_qgroup_info_item.
fn usage_of(item: &[u8]) -> Qgroup {
    let [_generation, referenced, _, exclusive] = numbers(item).unwrap_or_default();
    Qgroup {
        referenced,
        exclusive,
        ..Qgroup::default()
    }
}

/// Of a struct btrfs_qgroup_limit_item.
fn limits_of(item: &[u8]) -> QgroupLimits {
    let [flags, referenced, exclusive] = numbers(item).unwrap_or_default();
    let limit = |flag, bytes| {
        (flags & flag != 0)
            .then(|| NonZeroU64::new(bytes))
            .flatten()
    };
    QgroupLimits {
        referenced: limit(MAX_REFERENCED, referenced),
        exclusive: limit(MAX_EXCLUSIVE, exclusive),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::btrfs::{
        SubvolumeAccess, create_subvolume, destroy_subvolume, snapshot, subvolume_of, sync,
    };
    use crate::mounted_image::MountedImage;

    const MIB: u64 = 1 << 20;

    /// With quota of this kind, which has counted.
    fn btrfs(kind: QuotaKind) -> MountedImage {
        let image = MountedImage::new("btrfs", &["-q"], 256, "");
        enable_quota(image.root(), kind).unwrap();
        image.wait_until_counted();
        image
    }

    fn make(image: &MountedImage, name: &str) -> QgroupId {
        create_subvolume(image.root(), OsStr::new(name)).unwrap();
        group_at(image, OsStr::new(name))
    }

    fn group_at(image: &MountedImage, name: &OsStr) -> QgroupId {
        let open = File::open(image.path().join(name)).unwrap();
        QgroupId::of_subvolume(subvolume_of(open).unwrap())
    }

    /// A snapshot of a subvolume with 16 MiB.
    fn make_child(image: &MountedImage) -> QgroupId {
        make(image, "parent");
        write(image, "parent/big", 16).unwrap();
        let source = File::open(image.path().join("parent")).unwrap();
        let name = OsStr::new("child");
        snapshot(&source, image.root(), name, SubvolumeAccess::ReadWrite).unwrap();
        group_at(image, name)
    }

    fn write(image: &MountedImage, path: &str, mib: u64) -> io::Result<()> {
        let mut file = File::create(image.path().join(path))?;
        for _ in 0..mib {
            file.write_all(&vec![7; 1 << 20])?;
        }
        file.sync_all()
    }

    fn limit(mib: u64) -> QgroupLimits {
        QgroupLimits {
            referenced: NonZeroU64::new(mib * MIB),
            exclusive: None,
        }
    }

    fn errno<T: fmt::Debug>(result: io::Result<T>) -> i32 {
        result.unwrap_err().raw_os_error().unwrap()
    }

    #[test]
    fn ids_have_a_level_and_a_number() {
        let id = QgroupId::new(1, 42).unwrap();
        assert_eq!(
            (id.level(), id.number(), id.to_string()),
            (1, 42, "1/42".to_owned())
        );
        assert_eq!(QgroupId::new(1, 1 << 48), None);
        assert_eq!(QgroupId::MAX.level(), u16::MAX);
        assert!(QgroupId::of_subvolume(SubvolumeId(300)) < id);
    }

    #[test]
    fn mode_is_what_was_enabled_and_enabling_again_changes_nothing() {
        let image = MountedImage::new("btrfs", &["-q"], 128, "");
        let root = image.root();
        assert_eq!(quota_mode(&root).unwrap(), QuotaMode::Off);
        assert_eq!(errno(qgroup(&root, QgroupId::MAX)), libc::ENOENT);
        enable_quota(&root, QuotaKind::Simple).unwrap();
        assert_eq!(quota_mode(&root).unwrap(), QuotaMode::Simple);
        enable_quota(&root, QuotaKind::Classic).unwrap();
        assert_eq!(quota_mode(&root).unwrap(), QuotaMode::Simple);
        disable_quota(&root).unwrap();
        assert_eq!(quota_mode(&root).unwrap(), QuotaMode::Off);
        enable_quota(&root, QuotaKind::Classic).unwrap();
        let mode = quota_mode(&root).unwrap();
        assert!(
            [QuotaMode::Classic, QuotaMode::ClassicStale].contains(&mode),
            "{mode:?}"
        );
    }

    #[test]
    fn usage_is_read_and_limit_holds_grows_and_goes_away() {
        let image = btrfs(QuotaKind::Simple);
        let root = image.root();
        let id = make(&image, "one");
        set_qgroup_limits(&root, id, limit(8)).unwrap();
        assert_eq!(qgroup(&root, id).unwrap().unwrap().limits, limit(8));
        write(&image, "one/a", 4).unwrap();
        sync(&root).unwrap();
        let used = qgroup(&root, id).unwrap().unwrap();
        assert!((4 * MIB..5 * MIB).contains(&used.referenced), "{used:?}");

        assert_eq!(errno(write(&image, "one/b", 8)), libc::EDQUOT);
        set_qgroup_limits(&root, id, limit(32)).unwrap();
        write(&image, "one/b", 8).unwrap();
        set_qgroup_limits(&root, id, limit(2)).unwrap();
        assert_eq!(
            errno(write(&image, "one/c", 1)),
            libc::EDQUOT,
            "shrunk below usage"
        );
        set_qgroup_limits(&root, id, QgroupLimits::default()).unwrap();
        let limits = qgroup(&root, id).unwrap().unwrap().limits;
        assert_eq!(limits, QgroupLimits::default());
        write(&image, "one/c", 16).unwrap();
    }

    #[test]
    fn snapshot_counts_only_what_it_wrote_itself() {
        let image = btrfs(QuotaKind::Simple);
        let root = image.root();
        let child = make_child(&image);
        set_qgroup_limits(&root, child, limit(8)).unwrap();
        write(&image, "child/own", 4).unwrap();
        sync(&root).unwrap();
        let used = qgroup(&root, child).unwrap().unwrap();
        assert!((4 * MIB..5 * MIB).contains(&used.referenced), "{used:?}");
        assert_eq!(errno(write(&image, "child/more", 8)), libc::EDQUOT);
    }

    #[test]
    fn members_of_a_group_share_its_limit() {
        let image = btrfs(QuotaKind::Simple);
        let root = image.root();
        let group = QgroupId::new(1, 7).unwrap();
        create_qgroup(&root, group).unwrap();
        assert_eq!(errno(create_qgroup(&root, group)), libc::EEXIST);
        let lower = QgroupId::new(0, 1 << 20).unwrap();
        assert_eq!(errno(create_qgroup(&root, lower)), libc::EINVAL);
        set_qgroup_limits(&root, group, limit(12)).unwrap();
        let members = [make(&image, "one"), make(&image, "two")];
        for member in members {
            assert_eq!(assign(&root, member, group).unwrap(), Accounting::Exact);
        }
        write(&image, "one/a", 8).unwrap();
        assert_eq!(errno(write(&image, "two/a", 8)), libc::EDQUOT);
        assert_eq!(errno(destroy_qgroup(&root, group)), libc::EBUSY);

        sync(&root).unwrap();
        let found = qgroups(&root, members[0]..=group).unwrap();
        let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [members[0], members[1], group]);
        assert_eq!(found[2].1.limits, limit(12));
        assert!(found[2].1.referenced >= found[0].1.referenced + found[1].1.referenced);

        unassign(&root, members[1], group).unwrap();
        write(&image, "two/a", 8).unwrap();
    }

    #[test]
    fn groups_are_listed_beyond_one_buffer() {
        let image = btrfs(QuotaKind::Simple);
        let root = image.root();
        let ids: Vec<_> = (1..=150).map(|n| QgroupId::new(3, n).unwrap()).collect();
        for id in &ids {
            create_qgroup(&root, *id).unwrap();
            set_qgroup_limits(&root, *id, limit(id.number())).unwrap();
        }
        let found = qgroups(&root, ids[0]..=QgroupId::MAX).unwrap();
        assert_eq!(found.len(), ids.len());
        for ((id, group), expected) in found.iter().zip(&ids) {
            assert_eq!((id, group.limits), (expected, limit(id.number())));
        }
    }

    #[test]
    fn group_of_a_dropped_subvolume_goes_away() {
        let image = btrfs(QuotaKind::Simple);
        let root = image.root();
        let id = make(&image, "one");
        write(&image, "one/a", 4).unwrap();
        assert_eq!(
            errno(destroy_qgroup(&root, id)),
            libc::EBUSY,
            "it is in use"
        );
        destroy_subvolume(&root, OsStr::new("one")).unwrap();
        image.wait_until_dropped(SubvolumeId(id.number()));
        sync(&root).unwrap();
        match destroy_qgroup(&root, id) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            result => result.unwrap(),
        }
        assert_eq!(qgroup(&root, id).unwrap(), None);
        assert_eq!(errno(set_qgroup_limits(&root, id, limit(1))), libc::ENOENT);
    }

    #[test]
    fn classic_quota_tells_shared_from_exclusive() {
        let image = btrfs(QuotaKind::Classic);
        let root = image.root();
        let child = make_child(&image);
        let exclusive = QgroupLimits {
            referenced: None,
            exclusive: NonZeroU64::new(8 * MIB),
        };
        set_qgroup_limits(&root, child, exclusive).unwrap();
        write(&image, "child/own", 4).unwrap();
        sync(&root).unwrap();
        let used = qgroup(&root, child).unwrap().unwrap();
        assert_eq!(used.limits, exclusive);
        assert!(used.referenced >= 20 * MIB, "{used:?}");
        assert!((4 * MIB..5 * MIB).contains(&used.exclusive), "{used:?}");
        assert_eq!(errno(write(&image, "child/more", 8)), libc::EDQUOT);
    }
}
