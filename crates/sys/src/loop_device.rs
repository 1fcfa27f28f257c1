//! Files as block devices (loop(4)); must not mount them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{ioctl, raw};

const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
const LOOP_SET_BLOCK_SIZE: libc::Ioctl = 0x4C09;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// How often another process may be faster to take a free device.
const ATTEMPTS_MAX: usize = 64;

/// Devices looked at where there is no `/dev/loop-control` (before kernel 3.1).
const DEVICES_MAX: u32 = 256;

/// Whether what is written goes to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopAccess {
    /// It does.
    ReadWrite,
    /// Nothing can be written.
    ReadOnly,
}

/// Whether the file's pages are kept in memory beside the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopCache {
    /// They are: everything is cached twice.
    Double,
    /// Not where the kernel (4.4) and the file's file system can do without: what is below must
    /// take requests as small as [`LoopOptions::block_bytes`]. It is silently `Double` otherwise;
    /// [`LoopDevice::cache`] tells.
    Single,
}

/// How a device is made of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions {
    /// Whether it can be written.
    pub access: LoopAccess,
    /// Direct I/O or not.
    pub cache: LoopCache,
    /// The smallest request in bytes, a power of two from 512 to the size of a page (kernel 4.14);
    /// 512 is what every kernel does.
    pub block_bytes: u32,
}

/// A block device that shows a file. The kernel takes it apart when nobody has it open or mounted,
/// so it must be mounted before this is dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    open: File,
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct Status {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    file: u32,
    block_bytes: u32,
    status: Status,
    reserved: [u64; 8],
}

impl LoopDevice {
    /// Makes a device of a file, cached twice and with blocks of 512 bytes.
    ///
    /// # Errors
    /// What opening says; ENXIO or ENOENT without loop devices, EBUSY when all are taken.
    pub fn attach(file: &Path, access: LoopAccess) -> io::Result<Self> {
        let options = LoopOptions {
            access,
            cache: LoopCache::Double,
            block_bytes: 512,
        };
        Self::attach_with(file, &options)
    }

    /// Makes a device of a file: by one call (LOOP_CONFIGURE, kernel 5.8), which costs a hundredth
    /// of the several that older kernels need.
    ///
    /// # Errors
    /// As [`LoopDevice::attach`]; EINVAL for a block size that is none, or not 512 before 4.14.
    pub fn attach_with(file: &Path, options: &LoopOptions) -> io::Result<Self> {
        let mut open = OpenOptions::new();
        open.read(true)
            .write(options.access == LoopAccess::ReadWrite);
        let file = open.open(file)?;
        let mut refused = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..ATTEMPTS_MAX {
            let path = PathBuf::from(format!("/dev/loop{}", free_number()?));
            let device = open.open(&path)?;
            match configure(&device, &file, options) {
                Ok(()) => return Ok(Self { path, open: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    /// The device that shows this file, whoever made it, found by the file's identity among those
    /// that `/sys/block` says are in use. It cannot be taken apart while this is held.
    ///
    /// Looking costs some microseconds for each device in use, not for each file.
    ///
    /// # Errors
    /// Those of reading `/sys/block` and `/dev`.
    pub fn of_file(file: &File) -> io::Result<Option<Self>> {
        let about = file.metadata()?;
        for entry in std::fs::read_dir("/sys/block")? {
            let entry = entry?;
            // Only devices in use have this file.
            if !entry.path().join("loop/backing_file").exists() {
                continue;
            }
            let path = Path::new("/dev").join(entry.file_name());
            let open = match File::open(&path) {
                Ok(open) => open,
                // Taken apart, or removed, meanwhile.
                Err(error) if is(&error, &[libc::ENXIO, libc::ENOENT]) => continue,
                Err(error) => return Err(error),
            };
            let shows =
                |status: &Status| status.device == about.dev() && status.inode == about.ino();
            match get_status(&open) {
                Ok(status) if shows(&status) => return Ok(Some(Self { path, open })),
                Ok(_) => {}
                Err(error) if is(&error, &[libc::ENXIO]) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Path of the device, `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether direct I/O is done.
    ///
    /// # Errors
    /// ENXIO when it was taken apart by force.
    pub fn cache(&self) -> io::Result<LoopCache> {
        Ok(match get_status(&self.open)?.flags & LO_FLAGS_DIRECT_IO {
            0 => LoopCache::Double,
            _ => LoopCache::Single,
        })
    }

    /// Takes over the size that the file has now (LOOP_SET_CAPACITY, kernel 2.6.30), also while
    /// it is mounted. Smaller than what is in it is the caller's loss.
    ///
    /// # Errors
    /// ENXIO when it was taken apart by force.
    pub fn take_file_size(&self) -> io::Result<()> {
        // SAFETY: LOOP_SET_CAPACITY has no argument.
        unsafe { ioctl::with_number(self.open.as_fd(), LOOP_SET_CAPACITY, 0) }.map(drop)
    }

    /// Takes it apart; when it is mounted or open elsewhere, with its last user.
    ///
    /// # Errors
    /// ENXIO when that was done already.
    pub fn detach(self) -> io::Result<()> {
        // SAFETY: LOOP_CLR_FD has no argument.
        unsafe { ioctl::with_number(self.open.as_fd(), LOOP_CLR_FD, 0) }.map(drop)
    }
}

fn free_number() -> io::Result<u32> {
    let control = match File::open("/dev/loop-control") {
        Ok(control) => control,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return free_number_by_looking(),
        Err(error) => return Err(error),
    };
    // SAFETY: LOOP_CTL_GET_FREE has no argument.
    let number = unsafe { ioctl::with_number(control.as_fd(), LOOP_CTL_GET_FREE, 0) }?;
    Ok(number.unsigned_abs())
}

fn free_number_by_looking() -> io::Result<u32> {
    for number in 0..DEVICES_MAX {
        let device = File::open(format!("/dev/loop{number}"))?;
        if get_status(&device).is_err_and(|error| is(&error, &[libc::ENXIO])) {
            return Ok(number);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn is(error: &io::Error, numbers: &[i32]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|errno| numbers.contains(&errno))
}

/// Ties the device to the file until its last user is gone (autoclear, kernel 2.6.25).
fn configure(device: &File, file: &File, options: &LoopOptions) -> io::Result<()> {
    match configure_at_once(device, file, options) {
        // What kernels before 5.8 say to requests that they do not know.
        Err(error) if is(&error, &[libc::EINVAL, libc::ENOTTY, libc::ENOSYS]) => {
            configure_in_steps(device, file, options)
        }
        other => other,
    }
}

fn configure_at_once(device: &File, file: &File, options: &LoopOptions) -> io::Result<()> {
    let mut status = Status::zeroed();
    status.flags = LO_FLAGS_AUTOCLEAR;
    if options.access == LoopAccess::ReadOnly {
        status.flags |= LO_FLAGS_READ_ONLY;
    }
    if options.cache == LoopCache::Single {
        status.flags |= LO_FLAGS_DIRECT_IO;
    }
    let mut configuration = Configuration {
        file: file.as_raw_fd().unsigned_abs(),
        block_bytes: options.block_bytes,
        status,
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one struct loop_config.
    unsafe { ioctl::with(device.as_fd(), LOOP_CONFIGURE, &mut configuration) }.map(drop)
}

fn configure_in_steps(device: &File, file: &File, options: &LoopOptions) -> io::Result<()> {
    let fd = device.as_fd();
    // SAFETY: LOOP_SET_FD takes a descriptor as a number and touches no memory.
    raw::unit(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) }.into())?;
    let result = get_status(device).and_then(|mut status| {
        status.flags |= LO_FLAGS_AUTOCLEAR;
        // SAFETY: LOOP_SET_STATUS64 reads one struct loop_info64.
        unsafe { ioctl::with(fd, LOOP_SET_STATUS64, &mut status) }?;
        if options.block_bytes != 512 {
            // SAFETY: LOOP_SET_BLOCK_SIZE takes a number.
            unsafe { ioctl::with_number(fd, LOOP_SET_BLOCK_SIZE, options.block_bytes.into()) }?;
        }
        if options.cache == LoopCache::Single {
            // A wish: LOOP_CONFIGURE does not say either when the file cannot do it.
            // SAFETY: LOOP_SET_DIRECT_IO takes a number.
            drop(unsafe { ioctl::with_number(fd, LOOP_SET_DIRECT_IO, 1) });
        }
        Ok(())
    });
    if result.is_err() {
        // Best effort: without autoclear it would stay for ever.
        // SAFETY: LOOP_CLR_FD has no argument.
        drop(unsafe { ioctl::with_number(fd, LOOP_CLR_FD, 0) });
    }
    result
}

impl Status {
    fn zeroed() -> Self {
        // SAFETY: all zero bytes are a valid struct of numbers.
        unsafe { std::mem::zeroed() }
    }
}

fn get_status(device: &File) -> io::Result<Status> {
    let mut status = Status::zeroed();
    // SAFETY: LOOP_GET_STATUS64 fills one struct loop_info64 of numbers.
    unsafe { ioctl::with(device.as_fd(), LOOP_GET_STATUS64, &mut status) }?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const SINGLE: LoopOptions = LoopOptions {
        access: LoopAccess::ReadWrite,
        cache: LoopCache::Single,
        block_bytes: 4096,
    };

    fn file_of(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn sectors(device: &LoopDevice) -> u64 {
        let name = device.path().file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(format!("/sys/block/{name}/size")).unwrap();
        text.trim().parse().unwrap()
    }

    /// Waits until the device is no longer this file's: another program that looks at new devices
    /// (udev) may have it open still.
    fn wait_until_free(path: &Path, file: &File) {
        let inode = file.metadata().unwrap().ino();
        let ours = || match File::open(path) {
            Ok(device) => get_status(&device).is_ok_and(|status| status.inode == inode),
            // It is on its way to be free.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => true,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let start = std::time::Instant::now();
        while ours() && start.elapsed().as_secs() < 30 {
            std::thread::yield_now();
        }
        assert!(!ours());
    }

    /// Waits until no device is this file's: other tests look through all devices, and one that is let go
    /// while somebody has it open stays until that ends (LOOP_CLR_FD, loop(4)).
    fn wait_until_of_none(file: &File) {
        let is_of_none = || LoopDevice::of_file(file).unwrap().is_none();
        let start = std::time::Instant::now();
        while !is_of_none() && start.elapsed().as_secs() < 30 {
            std::thread::yield_now();
        }
        assert!(is_of_none());
    }

    #[test]
    fn device_shows_the_file_and_is_freed_by_itself() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let device = LoopDevice::attach(file.path(), LoopAccess::ReadOnly).unwrap();
        let mut opened = File::open(device.path()).unwrap();
        let flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY;
        assert_eq!(get_status(&opened).unwrap().flags, flags);
        let mut bytes = Vec::new();
        opened.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096]);
        let path = device.path().to_owned();
        drop((device, opened));
        wait_until_free(&path, file.as_file());

        let missing = LoopDevice::attach(Path::new("/no/such/file"), LoopAccess::ReadWrite);
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_call_and_several_make_the_same_device() {
        let made = |configure: fn(&File, &File, &LoopOptions) -> io::Result<()>| {
            let file = file_of(1 << 20);
            let read_write = File::options()
                .read(true)
                .write(true)
                .open(file.path())
                .unwrap();
            // A free device may be taken by another test between asking and taking.
            let (path, device) = (0..ATTEMPTS_MAX)
                .find_map(|_| {
                    let path = PathBuf::from(format!("/dev/loop{}", free_number().unwrap()));
                    let device = File::options().read(true).write(true).open(&path).unwrap();
                    match configure(&device, &read_write, &SINGLE) {
                        Err(error) if is(&error, &[libc::EBUSY]) => None,
                        other => other.map(|()| Some((path, device))).unwrap(),
                    }
                })
                .unwrap();
            let status = get_status(&device).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let queue = format!("/sys/block/{name}/queue/logical_block_size");
            let block = std::fs::read_to_string(queue).unwrap();
            drop(device);
            wait_until_free(&path, &read_write);
            (status.flags, status.size_limit, block)
        };
        let at_once = made(configure_at_once);
        assert_eq!(at_once.0 & !LO_FLAGS_DIRECT_IO, LO_FLAGS_AUTOCLEAR);
        assert_eq!(at_once.2, "4096\n");
        assert_eq!(made(configure_in_steps), at_once);
    }

    #[test]
    fn device_is_found_by_its_file_grown_and_taken_apart() {
        let file = file_of(1 << 20);
        assert!(LoopDevice::of_file(file.as_file()).unwrap().is_none());
        let device = LoopDevice::attach_with(file.path(), &SINGLE).unwrap();
        let found = LoopDevice::of_file(file.as_file()).unwrap().unwrap();
        assert_eq!(found.path(), device.path());
        assert_eq!(found.cache().unwrap(), device.cache().unwrap());

        file.as_file().set_len(3 << 20).unwrap();
        assert_eq!(sectors(&found), 2048);
        found.take_file_size().unwrap();
        assert_eq!(sectors(&found), 3 * 2048);

        let path = device.path().to_owned();
        drop(found);
        device.detach().unwrap();
        wait_until_free(&path, file.as_file());
        wait_until_of_none(file.as_file());
    }

    #[test]
    fn block_size_that_is_none_is_refused_and_leaves_nothing() {
        let file = file_of(1 << 20);
        let options = LoopOptions {
            block_bytes: 1000,
            ..SINGLE
        };
        let error = LoopDevice::attach_with(file.path(), &options).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        wait_until_of_none(file.as_file());
    }
}
