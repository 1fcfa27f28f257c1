//! How the kernel treats the program besides its rights: CPU time, disk time, memory nodes,
//! execution domain. Done while the process still has the rights for it.

use std::io;

use sys::scheduling::{
    Attributes, reset_cpu_affinity, set_cpu_affinity, set_io_priority, set_memory_policy,
    set_scheduler,
};

use crate::error::{Error, Result, host};
use crate::plan::{CpuScheduler, MemoryPolicy, Scheduling};

/// SCHED_FIFO and SCHED_RR (linux/sched.h).
const REAL_TIME: [u32; 2] = [1, 2];

/// SCHED_DEADLINE (linux/sched.h).
const DEADLINE: u32 = 6;

/// Tells the kernel all that is asked for.
pub(crate) fn apply(plan: &Scheduling) -> Result<()> {
    if plan.cpus.is_empty() && plan.cpus_initial.is_empty() {
        // As runc does since 1.4: it is the cpuset that says where a container runs, and not to
        // which CPUs somebody has pinned the caller.
        reset_cpu_affinity().map_err(host(|| "run on all CPUs of the cpuset".to_owned()))?;
    }
    if !plan.cpus.is_empty() {
        let step = || format!("run on the CPUs {:?}", plan.cpus);
        set_cpu_affinity(0, &plan.cpus).map_err(host(step))?;
    }
    if let Some(cpu) = plan.cpu {
        set_scheduler(&attributes(cpu)).map_err(|error| refused(cpu, error))?;
    }
    if let Some(io) = plan.io {
        let step = || format!("set I/O priority {}, level {}", io >> 13, io & 7);
        set_io_priority(io).map_err(host(step))?;
    }
    if let Some(MemoryPolicy { mode, nodes }) = &plan.memory {
        let step = || format!("set memory policy {mode:#x} with nodes {nodes:?}");
        set_memory_policy(*mode, nodes).map_err(host(step))?;
    }
    if let Some(personality) = plan.personality {
        let step = || format!("set personality {personality:#x}");
        sys::process::personality(personality.into()).map_err(host(step))?;
    }
    Ok(())
}

fn attributes(cpu: CpuScheduler) -> Attributes {
    Attributes {
        policy: cpu.policy,
        flags: cpu.flags,
        nice: cpu.nice,
        priority: cpu.priority,
        runtime_ns: cpu.runtime_ns,
        deadline_ns: cpu.deadline_ns,
        period_ns: cpu.period_ns,
    }
}

/// A new cgroup of version 1 has no real-time runtime, and none of its processes may be real-time.
fn refused(cpu: CpuScheduler, error: io::Error) -> Error {
    let hint = if REAL_TIME.contains(&cpu.policy) && error.kind() == io::ErrorKind::PermissionDenied
    {
        ", which needs CAP_SYS_NICE, and linux.resources.cpu.realtimeRuntime with cgroup version 1"
    } else if cpu.policy == DEADLINE && error.kind() == io::ErrorKind::PermissionDenied {
        ": a process scheduler can't be used together with AllowedCPUs, as it needs all CPUs of the \
         machine (sched_setattr(2))"
    } else {
        ""
    };
    host(|| format!("set scheduler policy {}{hint}", cpu.policy))(error)
}
