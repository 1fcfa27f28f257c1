//! Rights, limits and bonds of the calling process; all of it irreversible or inherited by execve.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::prctl;
use nix::unistd::Pid;

use crate::{fd, raw};

/// The three sets of capset(2), bit n for capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Pass execve of a file that has them inheritable.
    pub inheritable: u64,
}

/// `struct __user_cap_header_struct`, linux/capability.h.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`; version 3 has two, low bits first.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3: 64 bits, kernel 2.6.26.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets the effective, permitted and inheritable capabilities of the calling thread.
pub fn capset(sets: &Capabilities) -> io::Result<()> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let data = [low, high].map(|half| CapData {
        effective: half(sets.effective),
        permitted: half(sets.permitted),
        inheritable: half(sets.inheritable),
    });
    // SAFETY: header and both data structs have the kernel's layout and outlive the call.
    raw::unit(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })
}

/// The effective, permitted and inheritable capabilities of the calling thread.
pub fn capget() -> io::Result<Capabilities> {
    let mut header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut data = [CapData {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: header and both data structs have the kernel's layout and outlive the call.
    raw::unit(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join =
        |half: fn(&CapData) -> u32| u64::from(half(&data[0])) | u64::from(half(&data[1])) << 32;
    Ok(Capabilities {
        effective: join(|half| half.effective),
        permitted: join(|half| half.permitted),
        inheritable: join(|half| half.inheritable),
    })
}

fn low(set: u64) -> u32 {
    let [a, b, c, d, ..] = set.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high(set: u64) -> u32 {
    low(set >> 32)
}

/// Takes a capability out of the bounding set; EINVAL when the kernel does not know it.
pub fn cap_bounding_drop(capability: u32) -> io::Result<()> {
    prctl_numbers(libc::PR_CAPBSET_DROP, [capability.into(), 0, 0, 0])
}

/// Whether a capability is in the bounding set; EINVAL when the kernel does not know it.
pub fn cap_bounding_has(capability: u32) -> io::Result<bool> {
    let number = libc::c_ulong::from(capability);
    Ok(prctl_value(libc::PR_CAPBSET_READ, [number, 0, 0, 0])? != 0)
}

/// Raises a capability in the ambient set (kernel 4.3, EINVAL before).
pub fn cap_ambient_raise(capability: u32) -> io::Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE.unsigned_abs().into();
    prctl_numbers(libc::PR_CAP_AMBIENT, [raise, capability.into(), 0, 0])
}

/// Empties the ambient set (kernel 4.3, EINVAL before: there is none then).
pub fn cap_ambient_clear() -> io::Result<()> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs().into();
    prctl_numbers(libc::PR_CAP_AMBIENT, [clear, 0, 0, 0])
}

/// The highest capability number the running kernel knows, found by asking for each.
#[must_use]
pub fn last_cap() -> u32 {
    (1..64)
        .find(|capability| cap_bounding_has(*capability).is_err())
        .unwrap_or(64)
        - 1
}

/// Keeps permitted capabilities over the next change of uid (PR_SET_KEEPCAPS); execve resets it.
pub fn keep_capabilities() -> io::Result<()> {
    Ok(prctl::set_keepcaps(true)?)
}

/// Whether this kernel has no_new_privs (3.5; RHEL 6 brought it back).
#[must_use]
pub fn has_no_new_privs() -> bool {
    prctl_value(libc::PR_GET_NO_NEW_PRIVS, [0; 4]).is_ok()
}

/// Whether this kernel has setns(2) (3.0; RHEL 6 brought it back).
#[must_use]
pub fn has_setns() -> bool {
    // SAFETY: setns(2) takes two numbers and touches no memory; no descriptor has the number -1.
    let asked = raw::unit(unsafe { libc::syscall(libc::SYS_setns, -1, 0) });
    asked.is_err_and(|error| error.raw_os_error() != Some(libc::ENOSYS))
}

/// PR_SET_NO_NEW_PRIVS (kernel 3.5, EINVAL before).
pub fn no_new_privs() -> io::Result<()> {
    Ok(prctl::set_no_new_privs()?)
}

/// Loads a system-call filter: seccomp(2) (kernel 3.17), else prctl(2) (3.5) when `flags` is 0.
///
/// With SECCOMP_FILTER_FLAG_NEW_LISTENER (Linux 5.0) the descriptor comes that is told of system calls;
/// it is close-on-exec.
///
/// An instruction is a struct sock_filter as the number `code | jt << 16 | jf << 24 | k << 32`.
///
/// # Errors
/// EINVAL without seccomp in the kernel, EACCES without CAP_SYS_ADMIN and no_new_privs, ENOSYS for
/// flags that only seccomp(2) takes, E2BIG for more than 65535 instructions.
pub fn load_seccomp(program: &[u64], flags: u32) -> io::Result<Option<OwnedFd>> {
    let filters: Vec<_> = program.iter().map(|packed| sock_filter(*packed)).collect();
    let length = u16::try_from(filters.len())
        .map_err(|_too_long| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog {
        len: length,
        filter: filters.as_ptr().cast_mut(),
    };
    let mode = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
    let flag_bits = libc::c_ulong::from(flags);
    // SAFETY: `program` points to `length` filters that outlive the call; the kernel only reads.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, flag_bits, &raw const program) };
    if makes_listener(flags) {
        return raw::owned(result).map(Some);
    }
    let loaded = match raw::unit(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && flags == 0 => {
            let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
            // SAFETY: as above.
            let result =
                unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0) };
            raw::unit(result.into())
        }
        other => other,
    };
    loaded.map(|()| None)
}

/// Whether a filter with these flags has a descriptor that is told of system calls.
#[must_use]
pub fn makes_listener(flags: u32) -> bool {
    flags & u32::try_from(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER).unwrap_or(0) != 0
}

fn sock_filter(packed: u64) -> libc::sock_filter {
    let [c0, c1, jt, jf, k0, k1, k2, k3] = packed.to_le_bytes();
    libc::sock_filter {
        code: u16::from_le_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_le_bytes([k0, k1, k2, k3]),
    }
}

/// Sets a resource limit by setrlimit(2), never prlimit64 (2.6.36); `u64::MAX` is no limit.
pub fn setrlimit_raw(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit: [libc::c_ulong; 2] = [soft, hard];
    // SAFETY: `limit` has the layout of the kernel's struct rlimit and outlives the call.
    raw::unit(unsafe { libc::syscall(libc::SYS_setrlimit, resource, limit.as_ptr()) })
}

/// Soft and hard limit of a resource by getrlimit(2); `u64::MAX` is no limit.
pub fn getrlimit_raw(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit: [libc::c_ulong; 2] = [0; 2];
    // SAFETY: `limit` has the layout of the kernel's struct rlimit and outlives the call.
    raw::unit(unsafe { libc::syscall(libc::SYS_getrlimit, resource, limit.as_mut_ptr()) })?;
    Ok((limit[0], limit[1]))
}

/// Serial number of a new (or the existing) session keyring of that name, joined by this process.
///
/// # Errors
/// ENOSYS without keyrings in the kernel, EDQUOT when the user has too many keys.
pub fn join_session_keyring(name: &CStr) -> io::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_ulong = 1;
    // SAFETY: `name` is NUL-terminated and outlives the call, which only reads it.
    raw::value(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    })
}

/// Lets `mask` (KEY_* bits of linux/keyctl.h) be the access rights of a key.
pub fn key_setperm(key: i32, mask: u32) -> io::Result<()> {
    const KEYCTL_SETPERM: libc::c_ulong = 5;
    // SAFETY: the call takes numbers and touches no memory.
    raw::unit(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key, mask) })
}

/// Whether a process can be traced and read by others of its uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dumpable {
    /// As any program.
    Yes,
    /// `/proc/PID` belongs to root and ptrace(2) needs privilege.
    No,
}

/// PR_SET_DUMPABLE; execve resets it.
pub fn set_dumpable(dumpable: Dumpable) -> io::Result<()> {
    Ok(prctl::set_dumpable(dumpable == Dumpable::Yes)?)
}

/// Marks every descriptor from `first` up close-on-exec: close_range(2) (kernel 5.11), else what
/// `/proc/self/fd` lists, else every number below RLIMIT_NOFILE.
pub fn close_on_exec_from(first: i32) -> io::Result<()> {
    fd::close_on_exec_from(first).map_err(io::Error::from_raw_os_error)
}

/// On which side of a fork this code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// In the process that called; the new process has this pid here.
    Parent(Pid),
    /// In the new process.
    Child,
}

/// Forks: the new process is a child of this one, in the pid namespace of its children.
///
/// # Errors
/// As [`clone_parent`], but pid 1 may.
pub fn fork() -> io::Result<Fork> {
    clone_with(libc::SIGCHLD)
}

/// Forks a sibling: the new process is a child of our parent, in the pid namespace that setns(2)
/// chose for our children.
///
/// Memory is copied as by fork(2), only the calling thread runs in the copy. Pid 1 of a pid
/// namespace cannot do it (EINVAL).
///
/// # Errors
/// EBUSY when this process has more than one thread, as far as `/proc` tells.
pub fn clone_parent() -> io::Result<Fork> {
    clone_with(libc::CLONE_PARENT | libc::SIGCHLD)
}

fn clone_with(flags: libc::c_int) -> io::Result<Fork> {
    if threads().is_some_and(|count| count > 1) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let flags = libc::c_ulong::from(flags.unsigned_abs());
    // All five arguments are given: what is missing would be read from stale registers.
    let none: libc::c_ulong = 0;
    // SAFETY: no CLONE_VM and no new stack, so this is fork(2), perhaps with another parent. The
    // only thread runs on in both, so no lock of the C library or of std is held by a thread that
    // is missing.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match raw::value(result)? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid))),
    }
}

/// How many threads this process has; none where `/proc` does not show it.
fn threads() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

/// Undoes PR_SET_PDEATHSIG.
pub fn clear_pdeathsig() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(None)?)
}

/// Orphaned descendants become children of this process (kernel 3.4, EINVAL before).
pub fn set_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Sets the execution domain (personality(2)) and gives the one before.
pub fn personality(persona: u64) -> io::Result<u64> {
    let persona = libc::c_ulong::try_from(persona).map_err(io::Error::other)?;
    // SAFETY: the call takes a number and touches no memory.
    let before = unsafe { libc::personality(persona) };
    raw::unit(before.into())?;
    Ok(u64::from(before.unsigned_abs()))
}

/// A descriptor of a process (kernel 5.3), close-on-exec; readable when the process has ended.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory.
    raw::owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// Sends a signal by number to the process of a pidfd (kernel 5.1), whatever has its pid by now; 0
/// only asks.
///
/// # Errors
/// ESRCH when the process has ended.
pub fn pidfd_send_signal(process: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call takes two numbers, no siginfo and no flags.
    raw::unit(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            number,
            no_info,
            0,
        )
    })
}

/// Sends a signal by number: real-time ones (34 to 64) have no name in [`crate::Signal`].
///
/// 0 sends nothing and tells whether the process exists.
pub fn kill_number(pid: Pid, number: i32) -> io::Result<()> {
    // SAFETY: the call takes two numbers and touches no memory.
    raw::unit(unsafe { libc::kill(pid.as_raw(), number) }.into())
}

/// Sets the NIS domain name of the UTS namespace.
pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`, which the call only reads.
    raw::unit(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())
}

/// Gives every signal its default action and blocks none, as a new program expects.
///
/// Rust itself ignores SIGPIPE, and what is ignored stays so over execve(2).
pub fn reset_signals() -> io::Result<()> {
    signals_to_default();
    raw::unit(unblock_signals().into())
}

/// Gives every signal its default action. Async-signal-safe.
pub(crate) fn signals_to_default() {
    (1..=64).for_each(signal_to_default);
}

fn signal_to_default(number: libc::c_int) {
    // struct sigaction of the kernel: SIG_DFL, no flags, no mask are zeros on every architecture.
    let default = [0_u64; 4];
    let old = std::ptr::null_mut::<u64>();
    // By number, since the C library keeps signals 32 and 33 to itself, ignored ones too.
    // SAFETY: `default` is as long as the struct or longer and outlives the call; SIG_DFL installs
    // no code of ours. SIGKILL and SIGSTOP are refused with EINVAL, which changes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            number,
            default.as_ptr(),
            old,
            8_usize,
        )
    };
}

/// Blocks no signal. Async-signal-safe; negative on failure.
pub(crate) fn unblock_signals() -> libc::c_int {
    let mut none = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was filled above; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) }
}

fn prctl_numbers(option: libc::c_int, arguments: [libc::c_ulong; 4]) -> io::Result<()> {
    prctl_value(option, arguments).map(|_value| ())
}

/// prctl(2) for options that take numbers only.
fn prctl_value(option: libc::c_int, [a, b, c, d]: [libc::c_ulong; 4]) -> io::Result<i32> {
    // SAFETY: the options used here take numbers and touch no memory.
    let result = unsafe { libc::prctl(option, a, b, c, d) };
    raw::value(result.into())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Rights belong to a thread; what it gives up ends with it.
    fn in_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(run).join().unwrap()
    }

    const CAP_SYSLOG: u32 = 34;

    #[test]
    fn highest_capability_is_the_kernels() {
        let file = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        assert_eq!(last_cap().to_string(), file.trim_end());
    }

    #[test]
    fn capability_above_32_can_be_given_up() {
        in_thread(|| {
            let all = capget().unwrap();
            assert_ne!(all.permitted & 1 << CAP_SYSLOG, 0, "tests run as root");
            let less = Capabilities {
                effective: all.effective & !(1 << CAP_SYSLOG),
                permitted: all.permitted & !(1 << CAP_SYSLOG),
                inheritable: 0b101,
            };
            capset(&less).unwrap();
            assert_eq!(capget().unwrap(), less);
            let again = capset(&all).unwrap_err();
            assert_eq!(again.raw_os_error(), Some(libc::EPERM));
        });
    }

    #[test]
    fn bounding_and_ambient_sets_change() {
        in_thread(|| {
            assert!(cap_bounding_has(CAP_SYSLOG).unwrap());
            cap_bounding_drop(CAP_SYSLOG).unwrap();
            assert!(!cap_bounding_has(CAP_SYSLOG).unwrap());
            assert!(cap_bounding_drop(64).is_err());

            let mut sets = capget().unwrap();
            let refused = cap_ambient_raise(0).unwrap_err();
            assert_eq!(
                refused.raw_os_error(),
                Some(libc::EPERM),
                "not inheritable yet"
            );
            sets.inheritable |= 1;
            capset(&sets).unwrap();
            cap_ambient_raise(0).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("CapAmb:\t0000000000000001"), "{status}");
            cap_ambient_clear().unwrap();
        });
    }

    #[test]
    fn filter_is_loaded_and_answers() {
        const LOAD_NUMBER: u64 = 0x20;
        const JUMP_IF_EQUAL: u64 = 0x15;
        const RETURN: u64 = 0x06;
        const ALLOW: u64 = 0x7fff_0000;
        const ERRNO: u64 = 0x0005_0000;
        let getppid = u64::try_from(libc::SYS_getppid).unwrap();
        let answer = ERRNO | u64::try_from(libc::ENOTBLK).unwrap();
        let program = [
            LOAD_NUMBER,
            JUMP_IF_EQUAL | 1 << 24 | getppid << 32,
            RETURN | answer << 32,
            RETURN | ALLOW << 32,
        ];
        in_thread(move || {
            no_new_privs().unwrap();
            load_seccomp(&program, 0).unwrap();
            // SAFETY: the call has no arguments.
            let result = unsafe { libc::syscall(libc::SYS_getppid) };
            let error = raw::unit(result).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTBLK));
            assert!(load_seccomp(&[], 0).is_err());
            let long = vec![0; 65536];
            let error = load_seccomp(&long, 0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
        });
    }

    #[test]
    fn limits_are_set_as_they_are_read() {
        const RLIMIT_CORE: u32 = 4;
        let (soft, hard) = getrlimit_raw(RLIMIT_CORE).unwrap();
        setrlimit_raw(RLIMIT_CORE, soft, hard).unwrap();
        assert_eq!(getrlimit_raw(RLIMIT_CORE).unwrap(), (soft, hard));
        let refused = setrlimit_raw(RLIMIT_CORE, 2, 1).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn session_keyring_is_joined_where_the_kernel_has_keys() {
        in_thread(|| match join_session_keyring(c"sys-test") {
            Ok(key) => {
                assert!(key > 0);
                key_setperm(key, 0x3f00_0000).unwrap();
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
        });
    }

    #[test]
    fn sibling_is_made_only_by_a_process_of_one_thread() {
        in_thread(|| {
            let refused = clone_parent().unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
        });
        let (told, tell) = crate::pipe_cloexec().unwrap();
        let number = tell.as_raw_fd();
        let mut between = crate::fork::fork(&mut || {
            let code = match clone_parent() {
                Ok(Fork::Child) => 7,
                Ok(Fork::Parent(pid)) => {
                    let pid = pid.as_raw().to_ne_bytes();
                    // SAFETY: pointer and length describe `pid`.
                    unsafe { libc::write(number, pid.as_ptr().cast(), pid.len()) };
                    0
                }
                Err(_) => 1,
            };
            // SAFETY: _exit runs no code of ours and does not return.
            unsafe { libc::_exit(code) }
        })
        .unwrap();
        let mut pid = [0; 4];
        io::Read::read_exact(&mut File::from(told), &mut pid).unwrap();
        let mut sibling = crate::Child::adopt(Pid::from_raw(i32::from_ne_bytes(pid)));
        assert_eq!(between.wait().unwrap(), crate::ExitStatus::Exited(0));
        assert_eq!(sibling.wait().unwrap(), crate::ExitStatus::Exited(7));
    }

    #[test]
    fn execution_domain_and_domain_name_change() {
        const UNAME26: u64 = 0x0002_0000;
        in_thread(|| {
            personality(UNAME26).unwrap();
            let kernel = crate::Kernel::running().unwrap();
            assert_eq!((kernel.major, kernel.minor), (2, 6));
            nix::sched::unshare(crate::CloneFlags::CLONE_NEWUTS).unwrap();
            set_domainname("domain.of.a.test").unwrap();
            let uname = nix::sys::utsname::uname().unwrap();
            assert_eq!(uname.domainname(), "domain.of.a.test");
        });
    }

    #[test]
    fn signals_go_by_number_and_processes_have_descriptors() {
        kill_number(Pid::this(), 0).unwrap();
        assert!(kill_number(Pid::this(), 100).is_err());
        let gone = kill_number(Pid::from_raw(i32::MAX), 0).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
        match pidfd_open(Pid::this()) {
            Ok(_open) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
        }
    }

    #[test]
    fn user_namespace_has_the_maps_asked_for() {
        let namespace = crate::user_namespace("0 100000 1000\n", "0 100000 1000\n").unwrap();
        let link = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let theirs = std::fs::read_link(link).unwrap();
        assert!(theirs.to_string_lossy().starts_with("user:["), "{theirs:?}");
        assert_ne!(theirs, std::fs::read_link("/proc/self/ns/user").unwrap());
        let refused = crate::user_namespace("0 0\n", "0 0 1\n").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
