//! Names of system calls and their numbers, per architecture.

use crate::Arch;

/// Bit that marks a system call of the x32 kind.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// x32 calls with numbers of their own; all others are those of x86_64 (kernel:
/// arch/x86/entry/syscalls/syscall_64.tbl, ABI `x32`).
const X32_OWN: &[(&str, u32)] = &[
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// x86_64 calls that x32 lacks (ABI `64` there without an x32 twin).
const X32_LACKS: &[&str] = &[
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uselib",
    "vserver",
];

/// Calls of the ARM kernel outside the common table (arch/arm/include/uapi/asm/unistd.h).
const ARM_PRIVATE: &[(&str, u32)] = &[
    ("breakpoint", 0xf0001),
    ("cacheflush", 0xf0002),
    ("usr26", 0xf0003),
    ("usr32", 0xf0004),
    ("set_tls", 0xf0005),
    ("get_tls", 0xf0006),
];

/// Sub-calls of socketcall(2) on x86 (uapi/linux/net.h).
const SOCKETCALLS: &[(&str, u32)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// Sub-calls of ipc(2) on x86 (uapi/linux/ipc.h).
const IPCS: &[(&str, u32)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

const X86_SOCKETCALL: u32 = 102;
const X86_IPC: u32 = 117;

/// The number of a system call as the kernel sees it (with the x32 bit); none when the
/// architecture has no such call.
#[must_use]
pub fn number(arch: Arch, name: &str) -> Option<u32> {
    let number = match arch {
        Arch::X86_64 => x86_64(name),
        Arch::X32 => return x32(name),
        Arch::X86 => name.parse::<syscalls::x86::Sysno>().ok().map(|n| n.id()),
        Arch::Aarch64 => aarch64(name),
        Arch::Arm => match find(ARM_PRIVATE, name) {
            Some(number) => return Some(number),
            None => name.parse::<syscalls::arm::Sysno>().ok().map(|n| n.id()),
        },
    };
    number.and_then(|n| u32::try_from(n).ok())
}

/// A call that stands for many on x86, and the value of its first argument that means this one.
pub(crate) fn multiplexed(arch: Arch, name: &str) -> Option<(u32, u32)> {
    if arch != Arch::X86 {
        return None;
    }
    let socket = find(SOCKETCALLS, name).map(|sub| (X86_SOCKETCALL, sub));
    socket.or_else(|| find(IPCS, name).map(|sub| (X86_IPC, sub)))
}

fn find(table: &[(&str, u32)], name: &str) -> Option<u32> {
    table
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| *number)
}

fn x86_64(name: &str) -> Option<i32> {
    name.parse::<syscalls::x86_64::Sysno>().ok().map(|n| n.id())
}

fn x32(name: &str) -> Option<u32> {
    if X32_LACKS.contains(&name) {
        return None;
    }
    let number = find(X32_OWN, name).or_else(|| u32::try_from(x86_64(name)?).ok())?;
    Some(number | X32_BIT)
}

fn aarch64(name: &str) -> Option<i32> {
    // The crate says `fstatat`, the kernel `newfstatat`; and the crate lists the 32-bit
    // kernels' `*_time64` calls, which no arm64 kernel has.
    let name = if name == "newfstatat" {
        "fstatat"
    } else {
        name
    };
    let number = name.parse::<syscalls::aarch64::Sysno>().ok()?.id();
    (!(403..=423).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_kernel_tables() {
        let check =
            |arch, name, expected| assert_eq!(number(arch, name), expected, "{arch:?} {name}");
        check(Arch::X86_64, "read", Some(0));
        check(Arch::X86_64, "openat2", Some(437));
        check(Arch::X86_64, "socketcall", None);
        check(Arch::X32, "read", Some(X32_BIT));
        check(Arch::X32, "execve", Some(X32_BIT | 520));
        check(Arch::X32, "uselib", None);
        check(Arch::X86, "read", Some(3));
        check(Arch::X86, "socketcall", Some(102));
        check(Arch::X86, "ipc", Some(117));
        check(Arch::Aarch64, "newfstatat", Some(79));
        check(Arch::Aarch64, "open", None);
        check(Arch::Aarch64, "clock_gettime64", None);
        check(Arch::Aarch64, "pidfd_send_signal", Some(424));
        check(Arch::Arm, "clock_gettime64", Some(403));
        check(Arch::Arm, "set_tls", Some(983_045));
        check(Arch::X86_64, "no_such_call", None);
        for arch in [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm] {
            check(arch, "file_setattr", Some(469));
        }
    }
}
