//! Programs that decide which devices a cgroup of version 2 may use, by bpf(2) (Linux 4.15).
//!
//! Loads, lists, attaches and detaches; what a program says is the caller's. No maps, no links,
//! no other type of program.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::raw;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The kernel's BPF_CGROUP_MAX_PROGS: more are never attached to one cgroup.
const PROGRAMS_MAX: usize = 64;

/// The verifier can be interrupted by a signal; so often it is asked again (as libbpf does).
const LOAD_ATTEMPTS: usize = 5;

/// The members of union bpf_attr for BPF_PROG_LOAD that are used here.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Those for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    program_fd: u32,
    attach_type: u32,
    flags: u32,
    replace_fd: u32,
}

/// Those for BPF_PROG_QUERY, up to `revision`: Linux 6.17 to 7.1 write that member whatever size
/// they are told.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

/// Loads a program of instructions packed as `struct bpf_insn` in native byte order.
///
/// Kernels before 5.11 count it against RLIMIT_MEMLOCK and answer EPERM above it; the soft limit
/// is the caller's to raise. EINVAL or EACCES: the verifier refused it.
pub fn load_cgroup_device(instructions: &[u64]) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"Apache";
    let count = u32::try_from(instructions.len()).map_err(|_too_many| Errno::E2BIG)?;
    let mut attributes = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: count,
        instructions: address(instructions.as_ptr()),
        license: address(LICENSE.as_ptr()),
        ..Load::default()
    };
    let mut result = Err(Errno::EAGAIN.into());
    for _ in 0..LOAD_ATTEMPTS {
        // SAFETY: the instructions and the license outlive the call and have the length given;
        // the kernel only reads them.
        result = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) };
        if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EAGAIN)) {
            break;
        }
    }
    raw::owned(result?)
}

/// The programs attached to the cgroup whose directory is `cgroup`.
///
/// One that this process may not open (an LSM label) is left out: it can only forbid more.
pub fn attached_cgroup_device(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut attributes = Query {
        target_fd: number(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        ids: address(ids.as_mut_ptr()),
        count: u32::try_from(ids.len()).expect("64 fits"),
        ..Query::default()
    };
    // SAFETY: `ids` outlives the call and has room for `count` numbers.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes) }?;
    let count = usize::try_from(attributes.count)
        .unwrap_or(usize::MAX)
        .min(ids.len());
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        match program_by_id(*id) {
            Ok(program) => programs.push(program),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(programs)
}

/// Attaches a program beside those that are attached.
pub fn attach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attach {
        target_fd: number(cgroup),
        program_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        ..Attach::default()
    };
    // SAFETY: the attributes are numbers only.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attributes) }.map(drop)
}

/// Attaches a program in the place of `old` without a moment of neither (Linux 5.6; EINVAL
/// before).
pub fn replace_cgroup_device(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut attributes = Attach {
        target_fd: number(cgroup),
        program_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | BPF_F_REPLACE,
        replace_fd: number(old),
    };
    // SAFETY: the attributes are numbers only.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attributes) }.map(drop)
}

/// Takes a program off the cgroup.
pub fn detach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attach {
        target_fd: number(cgroup),
        program_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        ..Attach::default()
    };
    // SAFETY: the attributes are numbers only.
    unsafe { bpf(BPF_PROG_DETACH, &mut attributes) }.map(drop)
}

fn program_by_id(mut id: u32) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are one number.
    let result = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut id) };
    raw::owned(result?)
}

/// bpf(2). The kernel takes what lies behind the attributes as zeros, and writes answers into
/// them where the command has any.
///
/// # Safety
/// Addresses in the attributes must be valid for what the command reads or writes there.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are of the size given; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn address<T>(pointer: *const T) -> u64 {
    u64::try_from(pointer.addr()).expect("addresses have at most 64 bits")
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// `r0 = value; exit`.
    fn constant(value: u64) -> [u64; 2] {
        let bytes =
            |opcode: u8, immediate: u8| u64::from_ne_bytes([opcode, 0, 0, 0, immediate, 0, 0, 0]);
        [bytes(0xb7, u8::try_from(value).unwrap()), bytes(0x95, 0)]
    }

    #[test]
    fn program_that_is_none_is_refused_by_the_kernel() {
        for nonsense in [&[][..], &[0xff; 3][..]] {
            assert!(load_cgroup_device(nonsense).is_err());
        }
    }

    #[test]
    fn good_program_loads_unless_the_kernel_or_the_user_cannot() {
        match load_cgroup_device(&constant(1)) {
            Ok(program) => {
                let null = File::open("/dev/null").unwrap();
                let refused = attach_cgroup_device(null.as_fd(), program.as_fd()).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
                assert!(attached_cgroup_device(null.as_fd()).is_err());
            }
            Err(error) => {
                let excuses = [libc::EPERM, libc::ENOSYS, libc::EINVAL];
                assert!(excuses.contains(&error.raw_os_error().unwrap()), "{error}");
            }
        }
    }
}
