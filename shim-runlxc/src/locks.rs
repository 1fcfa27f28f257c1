//! Who holds a lock of flock(2), found by looking: taking it for a moment, even shared, would make
//! a try of its owner-to-be fail. `/proc/locks` is as old as the oldest kernel here.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// Whether somebody has an exclusive lock on the file.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn is_held(file: &File) -> io::Result<bool> {
    let found = file.metadata()?;
    let locks = fs::read_to_string("/proc/locks")?;
    let mut devices = vec![(major(found.dev()), minor(found.dev()))];
    devices.extend(device_of_mount(file)?);
    Ok(devices
        .into_iter()
        .any(|device| is_listed(&locks, device, found.ino())))
}

/// The device of the file system, which the list has; stat(2) has another on btrfs. None before
/// Linux 3.15.
fn device_of_mount(file: &File) -> io::Result<Option<(u64, u64)>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u32>().ok());
    let Some(id) = id else {
        return Ok(None);
    };
    let mounts = mounts::mountinfo::read()?;
    let mount = mounts.into_iter().find(|mount| mount.id == id);
    Ok(mount.map(|mount| (mount.device.0.into(), mount.device.1.into())))
}

/// `1: FLOCK  ADVISORY  WRITE 3121 fe:00:5349785 0 EOF`; a line with an arrow is one who waits.
fn is_listed(locks: &str, (major, minor): (u64, u64), inode: u64) -> bool {
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let [kind, _advisory, mode, _pid, at] = [(); 5].map(|()| words.next().unwrap_or_default());
        (kind, mode, at) == ("FLOCK", "WRITE", &place)
    })
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{Flock, FlockArg};

    use super::*;

    #[test]
    fn a_lock_is_listed_by_kind_mode_and_place() {
        let locks = "1: FLOCK  ADVISORY  WRITE 3121 fe:00:57 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 3122 fe:00:58 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 3121 fe:00:59 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 3121 fe:00:60 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 3121 00:1a:61 0 EOF\n";
        for (inode, held) in [
            (57, true),
            (58, false),
            (59, false),
            (60, false),
            (61, false),
        ] {
            assert_eq!(is_listed(locks, (0xfe, 0), inode), held, "{inode}");
        }
        assert!(is_listed(locks, (0, 0x1a), 61) && !is_listed("", (0, 0), 1));
    }

    #[test]
    fn a_look_takes_nothing() {
        let file = tempfile::tempfile().unwrap();
        assert!(!is_held(&file).unwrap());
        let other = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let _held = Flock::lock(other, FlockArg::LockExclusiveNonblock).unwrap();
        assert!(is_held(&file).unwrap());
    }

    #[test]
    fn nobody_who_locks_is_disturbed_by_those_who_look() {
        let temp = tempfile::tempdir().unwrap();
        let looking = std::sync::atomic::AtomicBool::new(true);
        let open = || File::open(temp.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while looking.load(std::sync::atomic::Ordering::Relaxed) {
                        is_held(&open()).unwrap();
                    }
                });
            }
            let locks = (0..2000).map(|_| Flock::lock(open(), FlockArg::LockExclusiveNonblock));
            let refused = locks.filter(Result::is_err).count();
            looking.store(false, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(refused, 0);
        });
    }
}
