//! What quota groups use now, of /sys/fs/btrfs: what was written and is not committed yet stands
//! there, and in no tree. Must not decide what is too much.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::{MAGIC, QgroupId};
use crate::ioctl;

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct Info {
    max_id: u64,
    devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

const BTRFS_IOC_FS_INFO: libc::Ioctl = nix::request_code_read!(MAGIC, 31, size_of::<Info>());

/// A commit moves bytes from one number of a group to another while they are read. They are read
/// again until the first is what it was before the second; after so many looks, what is being
/// committed may be counted twice.
const LOOKS_MAX: u32 = 8;

/// The quota groups of a file system in sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveQgroups {
    directory: PathBuf,
}

impl LiveQgroups {
    /// Those of the file system of an open file.
    ///
    /// # Errors
    /// NotFound before kernel 5.9 and without quota; ENOTTY outside btrfs.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let mut info = Info {
            max_id: 0,
            devices: 0,
            fsid: [0; 16],
            rest: [0; 124],
        };
        // SAFETY: BTRFS_IOC_FS_INFO fills one struct btrfs_ioctl_fs_info_args of numbers.
        unsafe { ioctl::with(file.as_fd(), BTRFS_IOC_FS_INFO, &mut info) }?;
        let directory = PathBuf::from(format!("/sys/fs/btrfs/{}/qgroups", uuid(info.fsid)));
        fs::metadata(&directory)?;
        Ok(Self { directory })
    }

    /// Bytes that a group sees, those included that are reserved for data which was not written
    /// to the disk yet; `None` when there is no such group. Metadata is as of the last commit: what
    /// is reserved for it is many times what it will need, and given back when the limit is met.
    ///
    /// # Errors
    /// Those of reading sysfs.
    pub fn referenced(&self, id: QgroupId) -> io::Result<Option<u64>> {
        let group = self
            .directory
            .join(format!("{}_{}", id.level(), id.number()));
        let number = |name: &str| match fs::read_to_string(group.join(name)) {
            Ok(text) => text
                .trim_end()
                .parse()
                .map(Some)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error)),
            // ENODEV is a group that goes away while it is read.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        };
        let mut before: Option<u64> = number("referenced")?;
        let mut looks = 1;
        loop {
            let reserved = number("rsv_data")?;
            let after = number("referenced")?;
            if after == before || looks == LOOKS_MAX {
                return Ok(after.zip(reserved).map(|(a, b)| a.saturating_add(b)));
            }
            (before, looks) = (after, looks + 1);
        }
    }
}

/// As sysfs writes it.
fn uuid(bytes: [u8; 16]) -> String {
    let number = u128::from_be_bytes(bytes);
    let hex = format!("{number:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::btrfs::{
        QuotaKind, SubvolumeId, create_subvolume, enable_quota, qgroup, subvolume_of, sync,
    };
    use crate::mounted_image::MountedImage;

    const MIB: u64 = 1 << 20;

    #[test]
    fn identifier_is_written_as_in_sysfs() {
        let bytes = [
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 1, 2, 3, 4, 5, 6, 0xff,
        ];
        assert_eq!(uuid(bytes), "01234567-89ab-cdef-0001-0203040506ff");
    }

    #[test]
    fn what_is_not_committed_yet_is_seen() {
        let image = MountedImage::new("btrfs", &["-q"], 512, "");
        let root = image.root();
        assert_eq!(
            LiveQgroups::of(&root).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        enable_quota(&root, QuotaKind::Simple).unwrap();
        let live = LiveQgroups::of(&root).unwrap();
        create_subvolume(&root, OsStr::new("one")).unwrap();
        let folder = image.path().join("one");
        let id = QgroupId::of_subvolume(subvolume_of(File::open(&folder).unwrap()).unwrap());
        let mut file = File::create(folder.join("a")).unwrap();
        file.write_all(&vec![7; 16 << 20]).unwrap();
        let now = live.referenced(id).unwrap().unwrap();
        assert!((16 * MIB..17 * MIB).contains(&now), "{now}");
        sync(&root).unwrap();
        let (tree, now) = (qgroup(&root, id).unwrap(), live.referenced(id).unwrap());
        assert_eq!(tree.map(|group| group.referenced), now);
        let nobody = QgroupId::of_subvolume(SubvolumeId(1 << 20));
        assert_eq!(live.referenced(nobody).unwrap(), None);
    }

    #[test]
    fn what_is_committed_between_two_reads_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let group = directory.path().join("0_256");
        fs::create_dir(&group).unwrap();
        fs::write(group.join("referenced"), "0\n").unwrap();
        let reserved = group.join("rsv_data");
        nix::unistd::mkfifo(&reserved, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let kernel = std::thread::spawn(move || {
            // Each open returns when the other side reads.
            let mut first = File::options().write(true).open(&reserved).unwrap();
            fs::write(group.join("referenced"), "700\n").unwrap();
            fs::remove_file(&reserved).unwrap();
            fs::write(&reserved, "11\n").unwrap();
            first.write_all(b"11\n").unwrap();
        });
        let live = LiveQgroups {
            directory: directory.path().to_owned(),
        };
        let id = QgroupId::of_subvolume(SubvolumeId(256));
        assert_eq!(live.referenced(id).unwrap(), Some(711));
        kernel.join().unwrap();
    }

    #[test]
    fn other_file_systems_have_none() {
        let root = File::open("/proc").unwrap();
        assert!(LiveQgroups::of(&root).is_err());
    }
}
