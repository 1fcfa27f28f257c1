//! Project quota: which project a file belongs to, and what a project uses and may use.
//!
//! One way for ext4 and xfs: ioctl_xfs_fsgetxattr(2) for the id, generic quotactl(2) for the rest.
//! Must not choose ids, walk trees or remember anything: the kernel is the only record.

use std::ffi::{CString, c_char};
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::{ioctl, raw};

/// Number of a project on one file system. 0 is everybody's: every file that was given no other
/// has it, and nothing limits it. `u32::MAX` is no id: the kernel answers EINVAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProjectId(pub u32);

/// Whether what is made in a directory gets its project id (FS_XFLAG_PROJINHERIT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherit {
    /// It does, and directories hand it on; link(2) and rename(2) from another project into it
    /// are EXDEV.
    Yes,
    /// It gets project 0.
    No,
}

/// What a file says about its project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectAttributes {
    /// Whose usage it counts into.
    pub id: ProjectId,
    /// For directories; always `No` for others.
    pub inherit: Inherit,
}

/// Most that a project may use; `None` is no limit.
///
/// At a hard limit writing fails: EDQUOT on ext4, ENOSPC on xfs. Above a soft limit it fails only
/// after the grace time of the file system (seven days unless set), but statfs(2) shows the soft
/// limit as the size at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes, never passed. Rounded up to 1024, by xfs to its blocks; from 2^63 on as good as none.
    pub bytes_hard: Option<NonZeroU64>,
    /// Bytes, passed for the grace time.
    pub bytes_soft: Option<NonZeroU64>,
    /// Files, directories and whatever else has an inode; never passed.
    pub inodes_hard: Option<NonZeroU64>,
    /// The same, passed for the grace time.
    pub inodes_soft: Option<NonZeroU64>,
}

/// What a project uses, and may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes allocated on the disk, also by files that are deleted but open, and what xfs keeps
    /// ready behind the end of files that are being written.
    pub bytes: u64,
    /// Inodes, with the same.
    pub inodes: u64,
    /// As the kernel has them: ext4 in 1024 bytes, xfs in its blocks.
    pub limits: Limits,
}

/// What a file system does about project quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaState {
    /// Nothing: not mounted with it, not made for it, or not in this kernel.
    Off,
    /// Usage is counted, limits are ignored (`pqnoenforce` on xfs; ext4 with the `quota` and
    /// `project` features but mounted without `prjquota`).
    Counting,
    /// Limits hold.
    Enforcing,
}

/// `struct fsxattr`, linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

const FS_IOC_FSGETXATTR: libc::Ioctl = nix::request_code_read!(b'X', 31, size_of::<Attributes>());
const FS_IOC_FSSETXATTR: libc::Ioctl = nix::request_code_write!(b'X', 32, size_of::<Attributes>());
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// Project of an open file or directory (not O_PATH); kernel 4.5, xfs long before.
///
/// # Errors
/// ENOTTY or EOPNOTSUPP on file systems without projects.
pub fn project_of(file: impl AsFd) -> io::Result<ProjectAttributes> {
    let attributes = attributes_of(&file)?;
    Ok(ProjectAttributes {
        id: ProjectId(attributes.project),
        inherit: match attributes.flags & FS_XFLAG_PROJINHERIT {
            0 => Inherit::No,
            _ => Inherit::Yes,
        },
    })
}

/// Puts an open file or directory into a project, for what is below it see [`Inherit`]. All
/// other attributes stay. What it uses now moves to the project's account, above limits too.
///
/// # Errors
/// EINVAL in a user namespace that is not the first; EOPNOTSUPP or ENOTTY on file systems without
/// projects; EPERM for those who do not own the file; EROFS.
pub fn set_project(file: impl AsFd, id: ProjectId, inherit: Inherit) -> io::Result<()> {
    let mut attributes = attributes_of(&file)?;
    attributes.project = id.0;
    match inherit {
        Inherit::Yes => attributes.flags |= FS_XFLAG_PROJINHERIT,
        Inherit::No => attributes.flags &= !FS_XFLAG_PROJINHERIT,
    }
    // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr.
    unsafe { ioctl::with(file.as_fd(), FS_IOC_FSSETXATTR, &mut attributes) }.map(drop)
}

fn attributes_of(file: &impl AsFd) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: FS_IOC_FSGETXATTR fills one struct fsxattr of numbers.
    unsafe { ioctl::with(file.as_fd(), FS_IOC_FSGETXATTR, &mut attributes) }?;
    Ok(attributes)
}

const Q_SYNC: u32 = 0x80_0001;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const Q_GETNEXTQUOTA: u32 = 0x80_0009;
const Q_XGETQSTATV: u32 = 0x5808;
const PRJQUOTA: u32 = 2;

/// `struct if_dqblk`, whose last padding is the id of `struct if_nextdqblk` (linux/quota.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Record {
    blocks_hard: u64,
    blocks_soft: u64,
    bytes: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    bytes_until: u64,
    inodes_until: u64,
    valid: u32,
    id: u32,
}

/// What limits count bytes in (QIF_DQBLKSIZE).
const BLOCK: u64 = 1024;
/// The kernel turns blocks into bytes in 63 bits, where xfs rounds up to its blocks: 64 KiB at most.
const BLOCKS_MAX: u64 = ((1 << 63) - (1 << 16)) / BLOCK;
const INODES_MAX: u64 = i64::MAX.unsigned_abs();
/// QIF_BLIMITS and QIF_ILIMITS: these fields are meant.
const LIMITS_VALID: u32 = 1 | 4;

impl Record {
    fn of(limits: &Limits) -> Self {
        let number = |limit: Option<NonZeroU64>| limit.map_or(0, NonZeroU64::get);
        let blocks = |limit| number(limit).div_ceil(BLOCK).min(BLOCKS_MAX);
        let inodes = |limit| number(limit).min(INODES_MAX);
        Self {
            blocks_hard: blocks(limits.bytes_hard),
            blocks_soft: blocks(limits.bytes_soft),
            inodes_hard: inodes(limits.inodes_hard),
            inodes_soft: inodes(limits.inodes_soft),
            valid: LIMITS_VALID,
            ..Self::default()
        }
    }

    fn usage(&self) -> Usage {
        let bytes = |blocks: u64| NonZeroU64::new(blocks.saturating_mul(BLOCK));
        Usage {
            bytes: self.bytes,
            inodes: self.inodes,
            limits: Limits {
                bytes_hard: bytes(self.blocks_hard),
                bytes_soft: bytes(self.blocks_soft),
                inodes_hard: NonZeroU64::new(self.inodes_hard),
                inodes_soft: NonZeroU64::new(self.inodes_soft),
            },
        }
    }
}

/// `struct fs_quota_statv` of linux/dqblk_xfs.h, up to what is used here.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    in_core: u32,
    rest: [u64; 19],
}

const FS_QSTATV_VERSION1: i8 = 1;
const FS_QUOTA_PDQ_ACCT: u16 = 1 << 4;
const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;

/// How the kernel is told which file system is meant.
#[derive(Debug)]
enum Way {
    /// quotactl_fd(2), kernel 5.14.
    Descriptor,
    /// quotactl(2) with the node of the block device.
    Device(CString),
}

/// The project quota of one mounted file system. All calls need CAP_SYS_ADMIN of the first user
/// namespace (EPERM), except [`Quota::state`].
#[derive(Debug)]
pub struct Quota {
    directory: OwnedFd,
    way: Way,
}

impl Quota {
    /// That of the file system which `directory` is on. It holds the directory open, so the file
    /// system cannot be unmounted meanwhile.
    ///
    /// # Errors
    /// What opening says. Below kernel 5.14 (or where a filter hides quotactl_fd), NotFound when
    /// `/dev` has no node for the device, as for file systems that are on none.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY);
        Self::of(options.open(directory)?.into())
    }

    /// That of the file system which this open directory is on; O_PATH is enough.
    ///
    /// # Errors
    /// As [`Quota::open`].
    pub fn of(directory: OwnedFd) -> io::Result<Self> {
        if quotactl_fd_exists() {
            let way = Way::Descriptor;
            return Ok(Self { directory, way });
        }
        Self::by_device(directory)
    }

    /// The way of kernels before 5.14.
    fn by_device(directory: OwnedFd) -> io::Result<Self> {
        let directory = File::from(directory);
        let device = device_node(directory.metadata()?.dev())?;
        Ok(Self {
            directory: directory.into(),
            way: Way::Device(CString::new(device.into_os_string().into_vec())?),
        })
    }

    /// Whether usage is counted and limits hold (Q_XGETQSTATV, kernel 4.1 for ext4).
    ///
    /// # Errors
    /// EACCES, EPERM from filters.
    pub fn state(&self) -> io::Result<QuotaState> {
        let mut state = State {
            version: FS_QSTATV_VERSION1,
            ..State::default()
        };
        // SAFETY: Q_XGETQSTATV fills one struct fs_quota_statv of this version.
        match unsafe { self.call(Q_XGETQSTATV, ProjectId(0), &mut state) } {
            Ok(()) => {}
            Err(error) if means_off(&error) => return Ok(QuotaState::Off),
            Err(error) => return Err(error),
        }
        let has = |flag| state.flags & flag != 0;
        Ok(match (has(FS_QUOTA_PDQ_ACCT), has(FS_QUOTA_PDQ_ENFD)) {
            (false, _) => QuotaState::Off,
            (true, false) => QuotaState::Counting,
            (true, true) => QuotaState::Enforcing,
        })
    }

    /// What a project uses and may use (Q_GETQUOTA); all zero for one that nobody has used.
    ///
    /// It does not depend on how many files there are, and is exact: xfs and ext4 count bytes
    /// when they reserve them, so what was written but not yet allocated may be in it.
    ///
    /// # Errors
    /// ESRCH or ENOSYS where project quota is off.
    pub fn get(&self, id: ProjectId) -> io::Result<Usage> {
        let mut record = Record::default();
        // SAFETY: Q_GETQUOTA fills one struct if_dqblk.
        match unsafe { self.call(Q_GETQUOTA, id, &mut record) } {
            Ok(()) => Ok(record.usage()),
            Err(error) if self.means_absent(&error) => Ok(Usage::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces all limits of a project (Q_SETQUOTA); in force when this returns, also for what
    /// is open. A limit below the usage is taken: nothing more can be written, all can be deleted.
    ///
    /// # Errors
    /// InvalidInput for a soft limit above its hard one (xfs would ignore both without a word);
    /// ESRCH or ENOSYS where project quota is off, EROFS, ENOSPC without room for the record.
    pub fn set(&self, id: ProjectId, limits: &Limits) -> io::Result<()> {
        let crossed = |soft, hard: Option<NonZeroU64>| hard.is_some() && soft > hard;
        if crossed(limits.bytes_soft, limits.bytes_hard)
            || crossed(limits.inodes_soft, limits.inodes_hard)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("soft limit above the hard one of project {}", id.0),
            ));
        }
        let mut record = Record::of(limits);
        // SAFETY: Q_SETQUOTA reads one struct if_dqblk.
        unsafe { self.call(Q_SETQUOTA, id, &mut record) }
    }

    /// The first project from `from` on that has usage or limits (Q_GETNEXTQUOTA, kernel 4.6).
    ///
    /// # Errors
    /// As [`Quota::get`]; EINVAL before 4.6.
    pub fn next(&self, from: ProjectId) -> io::Result<Option<(ProjectId, Usage)>> {
        let mut from = from;
        while from != ProjectId(u32::MAX) {
            let mut record = Record::default();
            // SAFETY: Q_GETNEXTQUOTA fills one struct if_nextdqblk.
            match unsafe { self.call(Q_GETNEXTQUOTA, from, &mut record) } {
                // ext4 of 5.10 also has records of projects that were only asked about.
                Ok(()) if record.usage() == Usage::default() => {
                    from = ProjectId(record.id.saturating_add(1));
                }
                Ok(()) => return Ok(Some((ProjectId(record.id), record.usage()))),
                Err(error) if self.means_absent(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Writes usage that is only in memory to the disk (Q_SYNC). xfs has nothing to write: its
    /// log has it already.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: Q_SYNC leaves the record alone.
        match unsafe { self.call(Q_SYNC, ProjectId(0), &mut Record::default()) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            other => other,
        }
    }

    /// # Safety
    /// `command` must take a pointer to a `T`, and only read it or leave a valid `T` there.
    unsafe fn call<T>(&self, command: u32, id: ProjectId, argument: &mut T) -> io::Result<()> {
        let request = command << 8 | PRJQUOTA;
        let argument = std::ptr::from_mut(argument);
        let result = match &self.way {
            // SAFETY: the argument outlives the call; the rest is the caller's promise.
            Way::Descriptor => unsafe {
                libc::syscall(
                    libc::SYS_quotactl_fd,
                    self.directory.as_raw_fd(),
                    request,
                    id.0,
                    argument,
                )
            },
            // SAFETY: the same; the path is NUL-terminated, and only read.
            Way::Device(node) => unsafe {
                libc::syscall(
                    libc::SYS_quotactl,
                    request,
                    node.as_ptr(),
                    id.0,
                    argument.cast::<c_char>(),
                )
            },
        };
        raw::unit(result)
    }

    /// Whether the kernel says that there is no record, and not that there is no device.
    fn means_absent(&self, error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::ENOENT)
            && match &self.way {
                Way::Descriptor => true,
                Way::Device(node) => nix::sys::stat::stat(node.as_c_str()).is_ok(),
            }
    }
}

/// EINVAL is what kernels say that do not know the command for this file system.
fn means_off(error: &io::Error) -> bool {
    let off = [libc::ENOSYS, libc::ESRCH, libc::EINVAL];
    error
        .raw_os_error()
        .is_some_and(|errno| off.contains(&errno))
}

/// Asked with a descriptor that is none: EBADF is the call's own answer, ENOSYS means that there
/// is no such call, and EPERM that a filter does not know it.
fn quotactl_fd_exists() -> bool {
    let nothing = std::ptr::null_mut::<c_char>();
    let request = Q_SYNC << 8 | PRJQUOTA;
    // SAFETY: Q_SYNC has no argument, and -1 is no descriptor.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, -1, request, 0, nothing) };
    result < 0 && raw::errno() == libc::EBADF
}

/// The node in `/dev` of a block device, by the name that the kernel gave it (devtmpfs, udev).
fn device_node(device: u64) -> io::Result<PathBuf> {
    let numbers = format!("{}:{}", major(device), minor(device));
    let path = Path::new("/sys/dev/block").join(&numbers).join("uevent");
    let none = |why: String| io::Error::new(io::ErrorKind::NotFound, why);
    let properties = std::fs::read_to_string(&path)
        .map_err(|error| none(format!("block device {numbers} of the directory: {error}")))?;
    let name = properties
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .ok_or_else(|| none(format!("no DEVNAME in {}", path.display())))?;
    let node = Path::new("/dev").join(name);
    let about = std::fs::metadata(&node)?;
    if !about.file_type().is_block_device() || about.rdev() != device {
        let node = node.display();
        return Err(none(format!("{node} is not block device {numbers}")));
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounted_image::MountedImage;

    fn xfs() -> MountedImage {
        MountedImage::new("xfs", &["-q"], 300, "")
    }

    #[test]
    fn limits_are_rounded_up_to_blocks_and_never_become_no_limit() {
        let check = |bytes: u64, blocks: u64, back: u64| {
            let limits = Limits {
                bytes_hard: NonZeroU64::new(bytes),
                inodes_hard: NonZeroU64::new(bytes),
                ..Limits::default()
            };
            let record = Record::of(&limits);
            assert_eq!(record.blocks_hard, blocks, "{bytes}");
            assert!(
                blocks == 0 || blocks << 10 >> 10 == blocks,
                "wraps in the kernel"
            );
            let limits = record.usage().limits;
            assert_eq!(limits.bytes_hard, NonZeroU64::new(back), "{bytes}");
            let inodes = limits.inodes_hard.map_or(0, NonZeroU64::get);
            assert_eq!(inodes, bytes.min(INODES_MAX));
            assert_eq!((limits.bytes_soft, limits.inodes_soft), (None, None));
        };
        check(0, 0, 0);
        check(1, 1, 1024);
        check(1024, 1, 1024);
        check(1025, 2, 2048);
        check(30 << 20, 30 << 10, 30 << 20);
        check(1 << 63, (1 << 53) - 64, (1 << 63) - (1 << 16));
        check(u64::MAX, (1 << 53) - 64, (1 << 63) - (1 << 16));
    }

    #[test]
    fn records_have_the_size_of_the_kernels() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<Record>(), 72);
        assert_eq!(size_of::<State>(), 160);
    }

    #[test]
    fn what_is_made_in_a_project_directory_is_in_the_project() {
        let image = xfs();
        let directory = image.path().join("snapshot");
        std::fs::create_dir(&directory).unwrap();
        let open = File::open(&directory).unwrap();
        let attributes = |id, inherit| ProjectAttributes {
            id: ProjectId(id),
            inherit,
        };
        assert_eq!(project_of(&open).unwrap(), attributes(0, Inherit::No));
        // An attribute that is not ours: no dump.
        let mut other = attributes_of(&open).unwrap();
        other.flags |= 0x80;
        // SAFETY: FS_IOC_FSSETXATTR reads one struct fsxattr.
        unsafe { ioctl::with(open.as_fd(), FS_IOC_FSSETXATTR, &mut other) }.unwrap();

        set_project(&open, ProjectId(0x4000_0001), Inherit::Yes).unwrap();
        let below = directory.join("fs");
        std::fs::create_dir(&below).unwrap();
        let file = File::create(below.join("file")).unwrap();
        let expected = attributes(0x4000_0001, Inherit::Yes);
        assert_eq!(project_of(File::open(&below).unwrap()).unwrap(), expected);
        assert_eq!(
            project_of(&file).unwrap(),
            attributes(0x4000_0001, Inherit::No)
        );
        assert_eq!(attributes_of(&open).unwrap().flags & 0x80, 0x80);

        let outside = image.path().join("outside");
        File::create(&outside).unwrap();
        let error = std::fs::hard_link(&outside, below.join("link")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));

        set_project(&open, ProjectId(0), Inherit::No).unwrap();
        assert_eq!(project_of(&open).unwrap(), attributes(0, Inherit::No));
        assert_eq!(attributes_of(&open).unwrap().flags & 0x80, 0x80);
    }

    #[test]
    fn file_system_without_project_quota_is_off_by_either_call() {
        let image = xfs();
        let by_device = Quota::by_device(image.root().into()).unwrap();
        for quota in [Quota::open(image.path()).unwrap(), by_device] {
            assert_eq!(quota.state().unwrap(), QuotaState::Off, "{quota:?}");
            let errno = quota.get(ProjectId(1)).unwrap_err().raw_os_error().unwrap();
            assert!(
                [libc::ENOSYS, libc::ESRCH].contains(&errno),
                "{quota:?}: {errno}"
            );
        }
    }

    #[test]
    fn directory_on_no_block_device_has_no_node() {
        let error = Quota::by_device(File::open("/proc").unwrap().into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        let error = Quota::open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn soft_limit_above_the_hard_one_is_refused() {
        let quota = Quota::open(Path::new("/tmp")).unwrap();
        let crossed = Limits {
            bytes_hard: NonZeroU64::new(1 << 20),
            bytes_soft: NonZeroU64::new(2 << 20),
            ..Limits::default()
        };
        let error = quota.set(ProjectId(7), &crossed).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
