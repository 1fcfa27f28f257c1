//! Making descriptors: pipes and sealed copies of programs; every one is close-on-exec.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};

use crate::{ioctl, raw};

/// Reading end and writing end of a new pipe, close-on-exec.
pub fn pipe_cloexec() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// How many bytes are in a pipe, of which this is the reading end (FIONREAD).
pub fn unread_bytes(pipe: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD of a pipe writes an int and reads nothing (ioctl(2), pipe_ioctl).
    unsafe { ioctl::with(pipe, libc::FIONREAD, &mut bytes) }?;
    Ok(u64::from(bytes.unsigned_abs()))
}

/// Takes that number for a copy of `fd`, so that nothing else that is opened gets it; none when something has it already.
pub fn take_number(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<Option<OwnedFd>> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(number))?;
    let copy = raw::owned(copy.into())?;
    Ok((copy.as_raw_fd() == number).then_some(copy))
}

/// A copy of `program` in memory that nobody can change any more, to be executed by
/// `/proc/self/fd/N` (kernel 3.17; ENOSYS before).
///
/// It is executable even where `vm.memfd_noexec` makes that opt-in (6.3).
pub fn memfd_sealed(name: &CStr, program: &File) -> io::Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let memory = match memfd_create(name, flags | MFD_EXEC) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    let mut memory = File::from(memory);
    let mut program = program.try_clone()?;
    program.seek(SeekFrom::Start(0))?;
    io::copy(&mut program, &mut memory)?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory.into())
}

/// A file in memory, close-on-exec and not executable, which goes with its last descriptor or mapping (kernel 3.17).
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    memfd_create(name, libc::MFD_CLOEXEC)
}

/// memfd_create(2) by number: old C libraries have no function for it.
fn memfd_create(name: &CStr, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated and outlives the call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) };
    raw::owned(result)
}

/// Marks every descriptor from `first` up close-on-exec.
///
/// Async-signal-safe: no allocation, no locks. close_range(2) from kernel 5.11, else what
/// `/proc/self/fd` lists, else every number below the limit.
pub(crate) fn close_on_exec_from(first: i32) -> Result<(), i32> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: the call takes three numbers and touches no memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first.unsigned_abs(),
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        return Ok(());
    }
    close_on_exec_listed(first).or_else(|_no_proc| close_on_exec_counted(first))
}

/// Walks `/proc/self/fd` by getdents64(2) into a buffer on the stack.
fn close_on_exec_listed(first: i32) -> Result<(), i32> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is a NUL-terminated literal; the call only reads it.
    let directory = unsafe { libc::open(c"/proc/self/fd".as_ptr(), flags) };
    if directory < 0 {
        return Err(raw::errno());
    }
    let mut result = Ok(());
    let mut buffer = Aligned([0; 4096]);
    loop {
        // SAFETY: the buffer is ours, of the given length, and aligned for linux_dirent64.
        let count = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                directory,
                buffer.0.as_mut_ptr(),
                buffer.0.len(),
            )
        };
        match usize::try_from(count) {
            Ok(0) => break,
            Ok(bytes) => names(&buffer.0[..bytes])
                .filter_map(number)
                .filter(|fd| *fd >= first)
                .for_each(set_close_on_exec),
            Err(_) => {
                result = Err(raw::errno());
                break;
            }
        }
    }
    raw::close(directory);
    result
}

/// Marks every number below RLIMIT_NOFILE (at most 2^20, the kernel's own default ceiling).
fn close_on_exec_counted(first: i32) -> Result<(), i32> {
    const CEILING: libc::rlim_t = 1 << 20;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid struct rlimit that the kernel fills.
    let result = unsafe { libc::syscall(libc::SYS_getrlimit, libc::RLIMIT_NOFILE, &raw mut limit) };
    if result < 0 {
        return Err(raw::errno());
    }
    let end = i32::try_from(limit.rlim_cur.min(CEILING)).unwrap_or(i32::MAX);
    (first..end).for_each(set_close_on_exec);
    Ok(())
}

fn set_close_on_exec(fd: i32) {
    // SAFETY: F_SETFD takes a number. EBADF for a number that is not open is what we want.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// A buffer aligned for struct linux_dirent64.
#[repr(align(8))]
struct Aligned([u8; 4096]);

/// The names in a buffer of struct linux_dirent64: d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name.
fn names(mut entries: &[u8]) -> impl Iterator<Item = &[u8]> {
    const NAME_AT: usize = 19;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*entries.get(16)?, *entries.get(17)?]));
        let name = entries.get(NAME_AT..length)?;
        entries = entries.get(length..)?;
        name.split(|byte| *byte == 0).next()
    })
}

/// A descriptor number in decimal; none for `.` and `..`.
fn number(name: &[u8]) -> Option<i32> {
    if name.is_empty() {
        return None;
    }
    name.iter().try_fold(0_i32, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| i32::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::{AsFd, AsRawFd, FromRawFd};
    use std::path::Path;

    use super::*;

    /// A descriptor of at least that number that stays open over execve.
    fn kept_from(least: i32) -> OwnedFd {
        let null = File::open("/dev/null").unwrap();
        let number = fcntl(&null, FcntlArg::F_DUPFD(least)).unwrap();
        // SAFETY: just made by fcntl, nobody else owns it.
        unsafe { OwnedFd::from_raw_fd(number) }
    }

    fn is_kept(fd: &OwnedFd) -> bool {
        fcntl(fd, FcntlArg::F_GETFD).unwrap() == 0
    }

    #[test]
    fn a_number_is_taken_once() {
        let (reader, _writer) = pipe_cloexec().unwrap();
        let number = 700;
        let taken = take_number(reader.as_fd(), number).unwrap().unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(take_number(reader.as_fd(), number).unwrap().is_none());
        drop(taken);
        assert!(take_number(reader.as_fd(), number).unwrap().is_some());
    }

    #[test]
    fn every_way_of_marking_marks_from_the_first_number_up() {
        for way in [
            close_on_exec_from,
            close_on_exec_listed,
            close_on_exec_counted,
        ] {
            // Far above what other tests use.
            let (below, above) = (kept_from(900), kept_from(950));
            way(950).unwrap();
            assert!(is_kept(&below));
            assert!(!is_kept(&above));
        }
    }

    #[test]
    fn directory_entries_are_read_as_the_kernel_writes_them() {
        let entry = |name: &str| {
            let length = (19 + name.len() + 1).next_multiple_of(8);
            let mut bytes = vec![0; length];
            bytes[16..18].copy_from_slice(&u16::try_from(length).unwrap().to_ne_bytes());
            bytes[19..19 + name.len()].copy_from_slice(name.as_bytes());
            bytes
        };
        let buffer: Vec<_> = [".", "..", "0", "17", "x1", "99999999999"]
            .map(entry)
            .concat();
        let numbers: Vec<_> = names(&buffer).map(number).collect();
        assert_eq!(numbers, [None, None, Some(0), Some(17), None, None]);
        assert_eq!(names(&buffer[..30]).count(), 1, "the second is cut off");
        assert_eq!(number(b""), None);
    }

    #[test]
    fn sealed_copy_runs_and_cannot_be_changed() {
        let program = File::open("/bin/true").unwrap();
        let sealed = memfd_sealed(c"copy of true", &program).unwrap();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        let mut child = crate::Spawn::new(Path::new(&path)).spawn().unwrap();
        assert_eq!(child.wait().unwrap(), crate::ExitStatus::Exited(0));
        let mut sealed = File::from(sealed);
        let refused = sealed.write(b"x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let length = program.metadata().unwrap().len();
        assert_eq!(sealed.metadata().unwrap().len(), length);
    }
}
