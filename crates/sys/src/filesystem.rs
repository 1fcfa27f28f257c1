//! What kind of file system something is on, and making a mounted one larger.
//!
//! Must not mount, make or check file systems, nor grow what is below them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::statfs::fstatfs;

use crate::{ioctl, raw};

/// The kinds that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesystemKind {
    /// ext4; ext2 and ext3 say the same of themselves.
    Ext4,
    /// xfs.
    Xfs,
    /// btrfs.
    Btrfs,
    /// tmpfs.
    Tmpfs,
    /// overlay.
    Overlay,
    /// Any other, by its number in linux/magic.h.
    Other(u32),
}

impl FilesystemKind {
    /// The kind of the file system that an open file is on (fstatfs(2)); O_PATH is enough from
    /// kernel 3.6 on.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        // 32 bits, whatever the width and sign that a C library gives them.
        let magic = i128::from(fstatfs(file)?.filesystem_type().0) & i128::from(u32::MAX);
        let magic = u32::try_from(magic).expect("masked to 32 bits");
        Ok(Self::from_magic(magic))
    }

    fn from_magic(magic: u32) -> Self {
        match magic {
            EXT4_SUPER_MAGIC => Self::Ext4,
            XFS_SUPER_MAGIC => Self::Xfs,
            BTRFS_SUPER_MAGIC => Self::Btrfs,
            TMPFS_MAGIC => Self::Tmpfs,
            OVERLAYFS_SUPER_MAGIC => Self::Overlay,
            other => Self::Other(other),
        }
    }
}

/// `struct statx` of linux/stat.h, up to what is used here.
#[repr(C)]
struct Statx {
    before: [u32; 34],
    device_major: u32,
    device_minor: u32,
    after: [u32; 28],
}

/// Major and minor number of the device that an open file is on (statx(2), kernel 4.11); O_PATH is
/// enough. The file system is not asked: one that has died, or hangs, is told all the same.
///
/// # Errors
/// ENOSYS before; EACCES and the like of the file system.
pub fn device_of(file: impl AsFd) -> io::Result<(u32, u32)> {
    const AT_EMPTY_PATH: libc::c_int = 0x1000;
    const AT_STATX_DONT_SYNC: libc::c_int = 0x4000;
    let mut about = Statx {
        before: [0; 34],
        device_major: 0,
        device_minor: 0,
        after: [0; 28],
    };
    // SAFETY: the path is a NUL-terminated literal; `about` has the kernel's layout and size and
    // outlives the call, which fills it.
    raw::unit(unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
            0,
            &raw mut about,
        )
    })?;
    Ok((about.device_major, about.device_minor))
}

/// Of linux/magic.h: nix has not all of them for musl.
const EXT4_SUPER_MAGIC: u32 = 0xef53;
const XFS_SUPER_MAGIC: u32 = 0x5846_5342;
const BTRFS_SUPER_MAGIC: u32 = 0x9123_683e;
const TMPFS_MAGIC: u32 = 0x0102_1994;
const OVERLAYFS_SUPER_MAGIC: u32 = 0x794c_7630;

/// `struct xfs_fsop_geom_v1` of xfs_fs.h, up to what is used here.
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    block_size: u32,
    realtime_extent_size: u32,
    group_blocks: u32,
    groups: u32,
    log_blocks: u32,
    sector_size: u32,
    inode_size: u32,
    inodes_max_percent: u32,
    data_blocks: u64,
    rest: [u64; 9],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrowth {
    blocks: u64,
    inodes_max_percent: u32,
}

const XFS_IOC_FSGEOMETRY_V1: libc::Ioctl =
    nix::request_code_read!(b'X', 100, size_of::<XfsGeometry>());
const XFS_IOC_FSGROWFSDATA: libc::Ioctl =
    nix::request_code_write!(b'X', 110, size_of::<XfsGrowth>());
// They are numbered for a long, and take an int (fs.h).
const FS_IOC_GETFLAGS: libc::Ioctl = nix::request_code_read!(b'f', 1, size_of::<libc::c_long>());
const FS_IOC_SETFLAGS: libc::Ioctl = nix::request_code_write!(b'f', 2, size_of::<libc::c_long>());
const FS_NOCOW_FL: libc::c_int = 0x0080_0000;

const EXT4_IOC_RESIZE_FS: libc::Ioctl = nix::request_code_write!(b'f', 16, size_of::<u64>());

/// Makes the mounted ext4 that `directory` is on as large as `bytes`, rounded down to its blocks
/// (EXT4_IOC_RESIZE_FS, kernel 3.3). The device must be that large already.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE; EINVAL when it is larger than that already, or than the device;
/// ENOTTY on other file systems; EOPNOTSUPP for layouts that cannot grow while mounted.
pub fn grow_ext4(directory: impl AsFd, bytes: u64) -> io::Result<()> {
    let block = fstatfs(&directory)?.block_size();
    let block = u64::try_from(block).map_err(io::Error::other)?.max(1);
    let mut blocks = bytes / block;
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64.
    unsafe { ioctl::with(directory.as_fd(), EXT4_IOC_RESIZE_FS, &mut blocks) }.map(drop)
}

/// Makes the mounted xfs that `directory` is on as large as `bytes`, rounded down to its blocks
/// (XFS_IOC_FSGROWFSDATA). The device must be that large already.
///
/// # Errors
/// InvalidInput when it is larger than that already (newer kernels would shrink it); EPERM without
/// CAP_SYS_ADMIN; ENOTTY on other file systems; EINVAL, ENOSPC or EIO when the device is smaller.
pub fn grow_xfs(directory: impl AsFd, bytes: u64) -> io::Result<()> {
    let geometry = xfs_geometry(&directory)?;
    let mut growth = XfsGrowth {
        blocks: bytes / u64::from(geometry.block_size.max(1)),
        inodes_max_percent: geometry.inodes_max_percent,
    };
    if growth.blocks < geometry.data_blocks {
        let (blocks, wanted) = (geometry.data_blocks, growth.blocks);
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("xfs has {blocks} blocks and cannot be shrunk to {wanted}"),
        ));
    }
    // SAFETY: XFS_IOC_FSGROWFSDATA reads one struct xfs_growfs_data.
    unsafe { ioctl::with(directory.as_fd(), XFS_IOC_FSGROWFSDATA, &mut growth) }.map(drop)
}

/// Bytes of the xfs that `directory` is on, its own needs included.
///
/// # Errors
/// ENOTTY on other file systems.
pub fn xfs_bytes(directory: impl AsFd) -> io::Result<u64> {
    let geometry = xfs_geometry(directory)?;
    Ok(geometry.data_blocks * u64::from(geometry.block_size))
}

fn xfs_geometry(directory: impl AsFd) -> io::Result<XfsGeometry> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: XFS_IOC_FSGEOMETRY_V1 fills one struct xfs_fsop_geom_v1 of numbers.
    unsafe { ioctl::with(directory.as_fd(), XFS_IOC_FSGEOMETRY_V1, &mut geometry) }?;
    Ok(geometry)
}

/// Has an empty file of btrfs written in place from now on, without sums of its contents
/// (FS_NOCOW_FL): what is written over needs no other room then.
///
/// # Errors
/// ENOTTY or EOPNOTSUPP on file systems that have no such flag; EINVAL on btrfs for a file that is
/// not empty, in some kernels, while others leave such a one as it was.
pub fn write_in_place(file: impl AsFd) -> io::Result<()> {
    let mut flags = flags(&file)? | FS_NOCOW_FL;
    // SAFETY: FS_IOC_SETFLAGS reads one int.
    unsafe { ioctl::with(file.as_fd(), FS_IOC_SETFLAGS, &mut flags) }.map(drop)
}

/// Whether a file of btrfs is written in place.
///
/// # Errors
/// As for [`write_in_place`].
pub fn is_written_in_place(file: impl AsFd) -> io::Result<bool> {
    Ok(flags(&file)? & FS_NOCOW_FL != 0)
}

fn flags(file: &impl AsFd) -> io::Result<libc::c_int> {
    let mut flags: libc::c_int = 0;
    // SAFETY: FS_IOC_GETFLAGS fills one int.
    unsafe { ioctl::with(file.as_fd(), FS_IOC_GETFLAGS, &mut flags) }?;
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;
    use crate::mounted_image::MountedImage;

    #[test]
    fn structs_have_the_size_of_the_kernels() {
        assert_eq!(size_of::<XfsGeometry>(), 112);
        assert_eq!(size_of::<XfsGrowth>(), 16);
    }

    #[test]
    fn a_device_is_what_stat_says() {
        let directory = File::open("/proc").unwrap();
        let device = nix::sys::stat::fstat(&directory).unwrap().st_dev;
        let numbers = [libc::major(device), libc::minor(device)];
        assert_eq!(<[u32; 2]>::from(device_of(&directory).unwrap()), numbers);
        assert_eq!(size_of::<Statx>(), 256);
    }

    #[test]
    fn kinds_are_told_apart() {
        let kind = |path: &str| FilesystemKind::of(File::open(path).unwrap()).unwrap();
        assert_eq!(kind("/proc"), FilesystemKind::Other(0x9fa0));
        for (name, arguments, mib, expected) in [
            ("ext4", &["-q"][..], 16, FilesystemKind::Ext4),
            ("xfs", &["-q"], 300, FilesystemKind::Xfs),
            ("btrfs", &["-q"], 128, FilesystemKind::Btrfs),
        ] {
            let image = MountedImage::new(name, arguments, mib, "");
            assert_eq!(FilesystemKind::of(image.root()).unwrap(), expected);
        }
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path();
        let mounted = |kind: &str, options: &str| {
            mount(
                Some("none"),
                target,
                Some(kind),
                MsFlags::empty(),
                Some(options),
            )
            .unwrap();
            FilesystemKind::of(File::open(target).unwrap()).unwrap()
        };
        assert_eq!(mounted("tmpfs", ""), FilesystemKind::Tmpfs);
        let lower = format!("lowerdir=/tmp:{}", target.display());
        assert_eq!(mounted("overlay", &lower), FilesystemKind::Overlay);
        umount2(target, MntFlags::MNT_DETACH).unwrap();
        umount2(target, MntFlags::MNT_DETACH).unwrap();
    }

    #[test]
    fn mounted_xfs_grows_with_its_image_and_never_shrinks() {
        let image = MountedImage::new("xfs", &["-q"], 300, "");
        let size = || {
            let about = nix::sys::statvfs::statvfs(image.path()).unwrap();
            about.blocks() * about.fragment_size()
        };
        let before = size();
        grow_xfs(image.root(), 600 << 20).unwrap_err();
        assert_eq!(size(), before, "the device is not larger yet");
        image.grow(600);
        grow_xfs(image.root(), 600 << 20).unwrap();
        assert_eq!(size(), before + (300 << 20));
        let error = grow_xfs(image.root(), 300 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        assert_eq!(size(), before + (300 << 20));

        let error = grow_ext4(image.root(), 600 << 20).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn an_empty_file_of_btrfs_can_be_written_in_place() {
        let image = MountedImage::new("btrfs", &["-q"], 128, "");
        let file = File::create(image.path().join("file")).unwrap();
        assert!(!is_written_in_place(&file).unwrap());
        write_in_place(&file).unwrap();
        assert!(is_written_in_place(&file).unwrap());
        let proc = File::open("/proc/self/status").unwrap();
        write_in_place(&proc).unwrap_err();
    }
}
