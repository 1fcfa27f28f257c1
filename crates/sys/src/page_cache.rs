//! What of a file the kernel has in memory, and where the file lies below; it reads and drops nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::{ioctl, raw};

/// `SYS_cachestat`, of one number on every architecture.
const CACHESTAT: libc::c_long = 451;

/// `FS_IOC_FIEMAP` of linux/fs.h: `_IOWR('f', 11, struct fiemap)`, whose head has 32 bytes.
const FIEMAP: libc::Ioctl = nix::request_code_readwrite!(b'f', 11, 32);

/// `FIEMAP_EXTENT_UNKNOWN`, `FIEMAP_EXTENT_NOT_ALIGNED` and the like say that there are no such bytes below.
const IS_NOT_BELOW: u32 = 0x0002 | 0x0008 | 0x0100;

/// `FIEMAP_EXTENT_LAST`.
const IS_LAST: u32 = 0x0001;

/// Extents that are asked for at once.
const AT_ONCE: u32 = 32;

/// A run of a file's bytes that lies in one piece below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first byte of it in the file.
    pub at: u64,
    /// Where that is on the device of the file system.
    pub below: u64,
    /// How many.
    pub bytes: u64,
}

#[repr(C)]
struct Range {
    first: u64,
    bytes: u64,
}

#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    written: u64,
    evicted: u64,
    recently_evicted: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct WireExtent {
    at: u64,
    below: u64,
    bytes: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_words: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    start: u64,
    bytes: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [WireExtent; AT_ONCE as usize],
}

/// How many pages of that range of a file are in memory (cachestat(2), Linux 6.5). A page that is being read counts from before
/// its file system is asked for it, so none means that nobody is reading there.
///
/// # Errors
/// ENOSYS before; EPERM for a file that the caller may not write and does not own.
pub fn pages_in_memory(file: impl AsFd, range: std::ops::Range<u64>) -> io::Result<u64> {
    let bytes = range.end.saturating_sub(range.start);
    if bytes == 0 {
        // To the kernel this would be all that follows.
        return Ok(0);
    }
    let first = range.start;
    let range = Range { first, bytes };
    let mut counts = Counts::default();
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: both have the kernel's layout and outlive the call, which reads the first and fills the second.
    let result = unsafe { libc::syscall(CACHESTAT, fd, &raw const range, &raw mut counts, 0) };
    raw::unit(result)?;
    Ok(counts.cached)
}

/// Where the contents of a file lie on the device of its file system (FIEMAP), holes left out.
///
/// # Errors
/// EOPNOTSUPP of file systems that do not tell; `InvalidData` for a file that is not on a device as it is.
pub fn extents_of(file: impl AsFd) -> io::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let mut map = Fiemap {
            start,
            bytes: u64::MAX - start,
            flags: 0,
            mapped: 0,
            count: AT_ONCE,
            reserved: 0,
            extents: [WireExtent::default(); AT_ONCE as usize],
        };
        // SAFETY: the request takes this struct, with room for as many extents as `count` says, and fills it with numbers.
        unsafe { ioctl::with(file.as_fd(), FIEMAP, &mut map) }?;
        let count = usize::try_from(map.mapped).map_err(io::Error::other)?;
        for extent in map.extents.iter().take(count) {
            if extent.flags & IS_NOT_BELOW != 0 {
                let why = "a file is not on its device as it is";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            found.push(Extent {
                at: extent.at,
                below: extent.below,
                bytes: extent.bytes,
            });
            if extent.flags & IS_LAST != 0 {
                return Ok(found);
            }
            start = extent.at.saturating_add(extent.bytes);
        }
        if count == 0 {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file() -> File {
        // /tmp may be in memory, where nothing lies below.
        tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    #[test]
    fn what_was_read_is_in_memory_until_it_is_dropped() {
        if !crate::Kernel::running().unwrap().at_least(6, 5) {
            println!("skipped: cachestat(2), which Linux has from 6.5");
            return;
        }
        let file = file();
        file.write_all_at(&[7; 16 << 10], 4096).unwrap();
        file.sync_all().unwrap();
        let pages = |range| pages_in_memory(&file, range).unwrap();
        assert_eq!(pages(4096..20 << 10), 4);
        assert_eq!((pages(0..4096), pages(5..5), pages(8192..8193)), (0, 0, 1));
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
        assert_eq!(pages(0..1 << 20), 0);
    }

    #[test]
    fn extents_are_those_of_what_was_written() {
        let file = file();
        for index in 0..40 {
            file.write_all_at(&[7; 4096], index * (64 << 10)).unwrap();
        }
        file.sync_all().unwrap();
        let found = extents_of(&file).unwrap();
        let bytes: u64 = found.iter().map(|extent| extent.bytes).sum();
        assert_eq!((found.len(), bytes), (40, 40 * 4096), "{found:?}");
        assert!(
            found
                .iter()
                .all(|one| one.at % (64 << 10) == 0 && one.below > 0)
        );
    }
}
