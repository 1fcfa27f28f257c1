//! CPU time, disk time and memory nodes of this process or another.

use std::io;
use std::mem::size_of;

use nix::errno::Errno;

use crate::raw;

/// What sched_setattr(2) takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// SCHED_* of linux/sched.h.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Of SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// Of SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Of SCHED_DEADLINE, as the next two.
    pub runtime_ns: u64,
    /// Deadline.
    pub deadline_ns: u64,
    /// Period.
    pub period_ns: u64,
}

/// struct sched_attr, SCHED_ATTR_SIZE_VER0.
#[repr(C)]
struct Kernels {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// SCHED_FLAG_RESET_ON_FORK, and the same beside a policy (2.6.32).
const RESET_ON_FORK: u64 = 1;

/// SCHED_OTHER and SCHED_BATCH, which have a nice value.
const NICE_POLICIES: [u32; 2] = [0, 3];

/// Has this process scheduled so. Before Linux 3.14 by sched_setscheduler(2) and setpriority(2).
///
/// # Errors
/// EPERM also for a real-time policy in a cgroup without real-time runtime; ENOSYS for what an old
/// kernel has no other call for.
pub fn set_scheduler(attributes: &Attributes) -> io::Result<()> {
    let kernels = Kernels {
        size: u32::try_from(size_of::<Kernels>()).map_err(io::Error::other)?,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime_ns,
        deadline: attributes.deadline_ns,
        period: attributes.period_ns,
    };
    // SAFETY: `kernels` has the layout and the size that it names and outlives the call.
    let set =
        raw::unit(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const kernels, 0) });
    match set {
        Err(error)
            if error.raw_os_error() == Some(Errno::ENOSYS as i32)
                && attributes.flags & !RESET_ON_FORK == 0
                && attributes.period_ns == 0 =>
        {
            set_scheduler_before_3_14(attributes)
        }
        set => set,
    }
}

fn set_scheduler_before_3_14(attributes: &Attributes) -> io::Result<()> {
    let reset = match attributes.flags & RESET_ON_FORK {
        0 => 0,
        _ => libc::SCHED_RESET_ON_FORK,
    };
    let number = |value: u32| i32::try_from(value).map_err(io::Error::other);
    let policy = number(attributes.policy)? | reset;
    let priority = number(attributes.priority)?;
    // SAFETY: `priority` is the kernel's struct sched_param, one int, and outlives the call.
    raw::unit(unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority)
    })?;
    if !NICE_POLICIES.contains(&attributes.policy) {
        return Ok(());
    }
    // SAFETY: the call takes three numbers and touches no memory.
    raw::unit(unsafe {
        libc::syscall(
            libc::SYS_setpriority,
            libc::PRIO_PROCESS,
            0,
            attributes.nice,
        )
    })
}

/// CONFIG_NR_CPUS of the largest kernels.
const CPUS_MAX: usize = 8192;

/// Sets the I/O class and level of this process, as one number (linux/ioprio.h).
pub fn set_io_priority(class_and_level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: the call takes three numbers and touches no memory.
    raw::unit(unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, class_and_level)
    })
}

/// Lets a process (0: this one) run on these CPUs alone.
///
/// # Errors
/// EINVAL when none of them is among those of its cpuset.
pub fn set_cpu_affinity(pid: i32, cpus: &[u32]) -> io::Result<()> {
    let mask = mask(cpus);
    let bytes = size_of_val(mask.as_slice());
    // SAFETY: `mask` has `bytes` bytes, which the call only reads, and outlives it.
    raw::unit(unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, bytes, mask.as_ptr()) })
}

/// Lets this process run on every CPU of its cpuset, whatever its parent was pinned to.
pub fn reset_cpu_affinity() -> io::Result<()> {
    // The kernel leaves out what is not there (sched_setaffinity(2)).
    let mask = [libc::c_ulong::MAX; CPUS_MAX / BITS];
    let bytes = size_of_val(&mask);
    // SAFETY: `mask` has `bytes` bytes, which the call only reads, and outlives it.
    raw::unit(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, bytes, mask.as_ptr()) })
}

/// Sets the memory policy of this process: MPOL_* and MPOL_F_* together, and nodes.
///
/// # Errors
/// ENOSYS without NUMA in the kernel, EINVAL for nodes that are not there.
pub fn set_memory_policy(mode: u32, nodes: &[u32]) -> io::Result<()> {
    let mask = mask(nodes);
    // The kernel takes one bit less than it is told.
    let bits = mask.len() * BITS + 1;
    // SAFETY: `mask` has at least `bits - 1` bits, which the call only reads, and outlives it.
    raw::unit(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), bits) })
}

const BITS: usize = libc::c_ulong::BITS as usize;

/// A bit for each number, in words as the kernel has them.
fn mask(numbers: &[u32]) -> Vec<libc::c_ulong> {
    let mut words = Vec::new();
    for number in numbers {
        let number = *number as usize;
        if words.len() <= number / BITS {
            words.resize(number / BITS + 1, 0);
        }
        words[number / BITS] |= 1 << (number % BITS);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_bits() {
        assert_eq!(mask(&[]), []);
        assert_eq!(mask(&[0, 3]), [0b1001]);
        assert_eq!(mask(&[64]), [0, 1]);
    }

    #[test]
    fn what_is_set_is_seen_by_the_kernel() {
        // A thread of its own: all of it is the thread's alone.
        let run = || {
            let attributes = Attributes {
                policy: 3,
                flags: 0,
                nice: 7,
                priority: 0,
                runtime_ns: 0,
                deadline_ns: 0,
                period_ns: 0,
            };
            set_scheduler(&attributes).unwrap();
            let stat = || std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let field = |at: usize| {
                stat()
                    .rsplit_once(") ")
                    .unwrap()
                    .1
                    .split(' ')
                    .nth(at)
                    .unwrap()
                    .to_owned()
            };
            assert_eq!((field(16), field(38)), ("7".to_owned(), "3".to_owned()));
            set_scheduler_before_3_14(&Attributes {
                policy: 0,
                nice: 9,
                ..attributes
            })
            .unwrap();
            assert_eq!((field(16), field(38)), ("9".to_owned(), "0".to_owned()));
            set_io_priority(2 << 13 | 7).unwrap();
            // SAFETY: the call takes two numbers and touches no memory.
            let io = raw::value(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) });
            assert_eq!(io.unwrap(), 2 << 13 | 7);
            set_cpu_affinity(0, &[0]).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
            reset_cpu_affinity().unwrap();
            let all = std::fs::read_to_string("/proc/1/status").unwrap();
            let list = |text: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| Some(line.strip_prefix("Cpus_allowed_list:")?.to_owned()))
            };
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert_eq!(list(&status), list(&all));
            let nowhere = set_cpu_affinity(0, &[4000]).unwrap_err();
            assert_eq!(nowhere.raw_os_error(), Some(Errno::EINVAL as i32));
        };
        std::thread::spawn(run).join().unwrap();
    }
}
