//! Subvolumes by name in an open directory; must not know quota.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::fstat;

use super::MAGIC;
use super::search::{self, Key, ROOT_TREE};
use crate::filesystem::FilesystemKind;
use crate::ioctl;

/// Number of a subvolume in its file system. The first that is made has 257 or more; 5 is the root
/// of all. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubvolumeId(pub u64);

/// Whether a subvolume can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubvolumeAccess {
    /// It can.
    ReadWrite,
    /// Every change is EROFS, until that is taken back.
    ReadOnly,
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct Named {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct Snapshot {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct Lookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

const BTRFS_IOC_SYNC: libc::Ioctl = nix::request_code_none!(MAGIC, 8);
const BTRFS_IOC_SUBVOL_CREATE: libc::Ioctl =
    nix::request_code_write!(MAGIC, 14, size_of::<Named>());
const BTRFS_IOC_SNAP_DESTROY: libc::Ioctl = nix::request_code_write!(MAGIC, 15, size_of::<Named>());
const BTRFS_IOC_INO_LOOKUP: libc::Ioctl =
    nix::request_code_readwrite!(MAGIC, 18, size_of::<Lookup>());
const BTRFS_IOC_SNAP_CREATE_V2: libc::Ioctl =
    nix::request_code_write!(MAGIC, 23, size_of::<Snapshot>());
const BTRFS_IOC_SUBVOL_GETFLAGS: libc::Ioctl = nix::request_code_read!(MAGIC, 25, size_of::<u64>());
const BTRFS_IOC_SUBVOL_SETFLAGS: libc::Ioctl =
    nix::request_code_write!(MAGIC, 26, size_of::<u64>());

const BTRFS_SUBVOL_RDONLY: u64 = 2;
/// BTRFS_FIRST_FREE_OBJECTID: inode of a subvolume's root directory.
const ROOT_DIRECTORY: u64 = 256;
/// BTRFS_ROOT_ITEM_KEY.
const ROOT_ITEM: u8 = 132;

/// The longest name of a file (BTRFS_NAME_LEN).
const NAME_BYTES_MAX: usize = 255;

/// Whether an open file is on btrfs.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_btrfs(file: impl AsFd) -> io::Result<bool> {
    Ok(FilesystemKind::of(file)? == FilesystemKind::Btrfs)
}

/// Whether an open directory is the root of a subvolume.
///
/// # Errors
/// Those of fstat(2) and fstatfs(2).
pub fn is_subvolume_root(directory: impl AsFd) -> io::Result<bool> {
    Ok(fstat(&directory)?.st_ino == ROOT_DIRECTORY && is_btrfs(directory)?)
}

/// Makes an empty subvolume in an open directory (BTRFS_IOC_SUBVOL_CREATE), with the mode 0777
/// less the umask. While quota is on it is counted from the start, as qgroup 0/id.
///
/// # Errors
/// InvalidInput for what is no name of a file, EEXIST, ENOTTY outside btrfs, EDQUOT, ENOSPC.
pub fn create_subvolume(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let mut named = Named {
        fd: 0,
        name: terminated(name)?,
    };
    // SAFETY: BTRFS_IOC_SUBVOL_CREATE reads one struct btrfs_ioctl_vol_args.
    unsafe { ioctl::with(parent.as_fd(), BTRFS_IOC_SUBVOL_CREATE, &mut named) }.map(drop)
}

/// Makes a snapshot of the subvolume whose root is `source` (BTRFS_IOC_SNAP_CREATE_V2). It is a
/// subvolume that shares all data; what is in memory of the source is written first.
///
/// # Errors
/// As [`create_subvolume`]; EINVAL when `source` is no root, EXDEV on another file system.
pub fn snapshot(
    source: impl AsFd,
    parent: impl AsFd,
    name: &OsStr,
    access: SubvolumeAccess,
) -> io::Result<()> {
    let mut snapshot = Snapshot {
        fd: source.as_fd().as_raw_fd().into(),
        transaction: 0,
        flags: flags_of(access),
        unused: [0; 4],
        name: terminated(name)?,
    };
    // SAFETY: BTRFS_IOC_SNAP_CREATE_V2 reads and writes one struct btrfs_ioctl_vol_args_v2 of
    // numbers; without the flag for it no address in it is used.
    unsafe { ioctl::with(parent.as_fd(), BTRFS_IOC_SNAP_CREATE_V2, &mut snapshot) }.map(drop)
}

/// Removes a subvolume with everything in it (BTRFS_IOC_SNAP_DESTROY; its second version by name
/// does the same from 5.7 on). The name is free at once; the space, and its qgroup's usage, when
/// the kernel's cleaner has dropped it, which [`sync`] hurries and [`subvolume_exists`] tells.
///
/// # Errors
/// InvalidInput for what is no name of a file; ENOENT; EINVAL or ENOTDIR when it is no subvolume;
/// ENOTEMPTY when another subvolume lies in it; EPERM for the default subvolume.
pub fn destroy_subvolume(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let mut named = Named {
        fd: 0,
        name: terminated(name)?,
    };
    // SAFETY: BTRFS_IOC_SNAP_DESTROY reads one struct btrfs_ioctl_vol_args.
    unsafe { ioctl::with(parent.as_fd(), BTRFS_IOC_SNAP_DESTROY, &mut named) }.map(drop)
}

/// The subvolume that an open file is in (BTRFS_IOC_INO_LOOKUP).
///
/// # Errors
/// ENOTTY outside btrfs.
pub fn subvolume_of(file: impl AsFd) -> io::Result<SubvolumeId> {
    let mut lookup = Lookup {
        tree: 0,
        object: ROOT_DIRECTORY,
        name: [0; 4080],
    };
    // SAFETY: BTRFS_IOC_INO_LOOKUP reads and fills one struct btrfs_ioctl_ino_lookup_args.
    unsafe { ioctl::with(file.as_fd(), BTRFS_IOC_INO_LOOKUP, &mut lookup) }?;
    Ok(SubvolumeId(lookup.tree))
}

/// Whether the subvolume with this root can be written.
///
/// # Errors
/// EINVAL when it is no root, ENOTTY outside btrfs.
pub fn subvolume_access(root: impl AsFd) -> io::Result<SubvolumeAccess> {
    Ok(match get_flags(&root)? & BTRFS_SUBVOL_RDONLY {
        0 => SubvolumeAccess::ReadWrite,
        _ => SubvolumeAccess::ReadOnly,
    })
}

/// Says whether the subvolume with this root can be written.
///
/// # Errors
/// As [`subvolume_access`]; EPERM for those who do not own it.
pub fn set_subvolume_access(root: impl AsFd, access: SubvolumeAccess) -> io::Result<()> {
    let mut flags = get_flags(&root)? & !BTRFS_SUBVOL_RDONLY | flags_of(access);
    // SAFETY: BTRFS_IOC_SUBVOL_SETFLAGS reads one u64.
    unsafe { ioctl::with(root.as_fd(), BTRFS_IOC_SUBVOL_SETFLAGS, &mut flags) }.map(drop)
}

fn get_flags(root: &impl AsFd) -> io::Result<u64> {
    let mut flags = 0_u64;
    // SAFETY: BTRFS_IOC_SUBVOL_GETFLAGS fills one u64.
    unsafe { ioctl::with(root.as_fd(), BTRFS_IOC_SUBVOL_GETFLAGS, &mut flags) }?;
    Ok(flags)
}

/// Writes all data and metadata of the file system to the disk (BTRFS_IOC_SYNC). That makes the
/// usage of qgroups current, and wakes the cleaner of destroyed subvolumes.
///
/// # Errors
/// Those of the disk.
pub fn sync(file: impl AsFd) -> io::Result<()> {
    // SAFETY: BTRFS_IOC_SYNC has no argument.
    unsafe { ioctl::with_number(file.as_fd(), BTRFS_IOC_SYNC, 0) }.map(drop)
}

/// Whether a subvolume still uses space: it is there, or destroyed but not dropped yet.
///
/// The kernel has no event for it: BTRFS_IOC_SUBVOL_SYNC_WAIT (6.13) looks once a second, and was
/// seen to return half a minute after the space was free. Some milliseconds after a [`sync`] it
/// usually is, so there is time until the usage is asked for again.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn subvolume_exists(file: impl AsFd, id: SubvolumeId) -> io::Result<bool> {
    let key = |offset| Key {
        object: id.0,
        kind: ROOT_ITEM,
        offset,
    };
    let mut found = false;
    let range = (key(0), key(u64::MAX));
    search::each(file.as_fd(), ROOT_TREE, range, |_, _| found = true)?;
    Ok(found)
}

fn flags_of(access: SubvolumeAccess) -> u64 {
    match access {
        SubvolumeAccess::ReadWrite => 0,
        SubvolumeAccess::ReadOnly => BTRFS_SUBVOL_RDONLY,
    }
}

/// The name of one directory entry, with zeros behind it.
fn terminated<const BYTES: usize>(name: &OsStr) -> io::Result<[u8; BYTES]> {
    let bytes = name.as_bytes();
    let is_no_name = bytes.is_empty()
        || bytes.len() > NAME_BYTES_MAX
        || [&b"."[..], b".."].contains(&bytes)
        || bytes.iter().any(|byte| [0, b'/'].contains(byte));
    if is_no_name {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no name of a subvolume"),
        ));
    }
    let mut buffer = [0; BYTES];
    buffer[..bytes.len()].copy_from_slice(bytes);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::mounted_image::MountedImage;

    fn btrfs() -> MountedImage {
        MountedImage::new("btrfs", &["-q"], 128, "")
    }

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn structs_have_the_size_of_the_kernels() {
        assert_eq!(size_of::<Named>(), 4096);
        assert_eq!(size_of::<Snapshot>(), 4096);
        assert_eq!(size_of::<Lookup>(), 4096);
    }

    #[test]
    fn snapshot_is_a_subvolume_of_its_own() {
        let image = btrfs();
        let root = image.root();
        assert_eq!(subvolume_of(&root).unwrap(), SubvolumeId(5));
        create_subvolume(&root, name("one")).unwrap();
        let one = File::open(image.path().join("one")).unwrap();
        assert!(is_subvolume_root(&one).unwrap());
        std::fs::write(image.path().join("one/file"), "text").unwrap();
        snapshot(&one, &root, name("two"), SubvolumeAccess::ReadWrite).unwrap();

        let copy = image.path().join("two/file");
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), "text");
        std::fs::write(&copy, "other").unwrap();
        let original = image.path().join("one/file");
        assert_eq!(std::fs::read_to_string(original).unwrap(), "text");
        let two = File::open(image.path().join("two")).unwrap();
        assert_ne!(subvolume_of(&one).unwrap(), subvolume_of(&two).unwrap());
        let file = File::open(copy).unwrap();
        assert_eq!(subvolume_of(&file).unwrap(), subvolume_of(&two).unwrap());
        assert!(!is_subvolume_root(&file).unwrap());
    }

    #[test]
    fn subvolume_is_read_only_until_that_is_taken_back() {
        let image = btrfs();
        let root = image.root();
        create_subvolume(&root, name("one")).unwrap();
        let one = File::open(image.path().join("one")).unwrap();
        assert_eq!(subvolume_access(&one).unwrap(), SubvolumeAccess::ReadWrite);
        snapshot(&one, &root, name("frozen"), SubvolumeAccess::ReadOnly).unwrap();
        let frozen = File::open(image.path().join("frozen")).unwrap();
        assert_eq!(
            subvolume_access(&frozen).unwrap(),
            SubvolumeAccess::ReadOnly
        );
        let file = image.path().join("frozen/file");
        let error = std::fs::write(&file, "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        set_subvolume_access(&frozen, SubvolumeAccess::ReadWrite).unwrap();
        std::fs::write(&file, "x").unwrap();
        set_subvolume_access(&frozen, SubvolumeAccess::ReadOnly).unwrap();
        drop(frozen);
        destroy_subvolume(&root, name("frozen")).unwrap();
    }

    #[test]
    fn destroyed_subvolume_is_gone_by_name_at_once_and_dropped_in_the_end() {
        let image = btrfs();
        let root = image.root();
        create_subvolume(&root, name("one")).unwrap();
        let one = File::open(image.path().join("one")).unwrap();
        let id = subvolume_of(&one).unwrap();
        std::fs::write(image.path().join("one/file"), vec![1; 1 << 20]).unwrap();
        assert!(subvolume_exists(&root, id).unwrap());
        drop(one);
        destroy_subvolume(&root, name("one")).unwrap();
        assert!(!image.path().join("one").exists());
        image.wait_until_dropped(id);
        assert!(subvolume_exists(&root, SubvolumeId(5)).unwrap());
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let image = btrfs();
        let root = image.root();
        create_subvolume(&root, name("one")).unwrap();
        let one = File::open(image.path().join("one")).unwrap();
        create_subvolume(&one, name("nested")).unwrap();
        std::fs::create_dir(image.path().join("plain")).unwrap();
        let plain = File::open(image.path().join("plain")).unwrap();
        let errno = |result: io::Result<()>| result.unwrap_err().raw_os_error().unwrap();

        assert_eq!(errno(create_subvolume(&root, name("one"))), libc::EEXIST);
        let nested = errno(destroy_subvolume(&root, name("one")));
        assert_eq!(nested, libc::ENOTEMPTY);
        assert_eq!(errno(destroy_subvolume(&root, name("none"))), libc::ENOENT);
        assert_eq!(errno(destroy_subvolume(&root, name("plain"))), libc::EINVAL);
        let of_plain = snapshot(&plain, &root, name("two"), SubvolumeAccess::ReadWrite);
        assert_eq!(errno(of_plain), libc::EINVAL);
        let elsewhere = File::open("/tmp").unwrap();
        assert_eq!(errno(create_subvolume(&elsewhere, name("x"))), libc::ENOTTY);
        assert!(!is_btrfs(&elsewhere).unwrap());
        let long = "x".repeat(256);
        for bad in ["", ".", "..", "a/b", "a\0b", &long] {
            let error = create_subvolume(&root, name(bad)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
        create_subvolume(&root, name(&long[1..])).unwrap();
    }
}
