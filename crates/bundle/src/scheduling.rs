//! `process.scheduler`, `process.ioPriority`, `process.execCPUAffinity`, `linux.memoryPolicy` and
//! `linux.personality` (config.md, config-linux.md), by runc's rules.

use launch::plan::{CpuScheduler, MemoryPolicy, Scheduling};
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process,
    Scheduler,
};

use crate::{Error, Result};

/// More CPUs or memory nodes than any kernel is built for.
const NUMBER_MAX: u32 = 8191;

/// Least and greatest time of SCHED_DEADLINE, in nanoseconds (sched(7)).
const DEADLINE_NS_MIN: u64 = 1024;
const DEADLINE_NS_MAX: u64 = (1 << 63) - 1;

/// Modes of `linux.memoryPolicy` that are known.
pub const MEMORY_MODES: [MemoryPolicyModeType; 7] = [
    MemoryPolicyModeType::MpolDefault,
    MemoryPolicyModeType::MpolBind,
    MemoryPolicyModeType::MpolInterleave,
    MemoryPolicyModeType::MpolWeightedInterleave,
    MemoryPolicyModeType::MpolPreferred,
    MemoryPolicyModeType::MpolPreferredMany,
    MemoryPolicyModeType::MpolLocal,
];

/// Flags of `linux.memoryPolicy` that are known.
pub const MEMORY_FLAGS: [MemoryPolicyFlagType; 3] = [
    MemoryPolicyFlagType::MpolFNumaBalancing,
    MemoryPolicyFlagType::MpolFRelativeNodes,
    MemoryPolicyFlagType::MpolFStaticNodes,
];

/// What a container gives to each of its processes.
///
/// # Errors
/// [`Error::Invalid`] by the field.
pub(crate) fn of_container(linux: &Linux, warnings: &mut Vec<String>) -> Result<Scheduling> {
    let memory = linux.memory_policy().as_ref().map(memory).transpose()?;
    let personality = linux.personality().as_ref().map(|personality| {
        let flags = personality.flags().as_deref().unwrap_or_default();
        if !flags.is_empty() {
            // As runc: the kernel's flags have no names in the specification.
            warnings.push(format!("linux.personality.flags {flags:?} are ignored"));
        }
        match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 0x0008,
        }
    });
    Ok(Scheduling {
        memory,
        personality,
        ..Scheduling::default()
    })
}

/// The same with what the process asks for; `container` is what it has without asking: of a process
/// that joins, what config.json says of the first one, too (as runc since 1.3).
///
/// # Errors
/// [`Error::Invalid`] by the field.
pub(crate) fn of_process(spec: &Process, container: &Scheduling) -> Result<Scheduling> {
    let mut scheduling = container.clone();
    if let Some(spec) = spec.scheduler() {
        scheduling.cpu = Some(cpu(spec)?);
    }
    if let Some(spec) = *spec.io_priority() {
        scheduling.io = Some(io(spec)?);
    }
    if let Some(affinity) = spec.exec_cpu_affinity() {
        let cpus = |name: &str, list: &Option<String>| {
            numbers(&format!("process.execCPUAffinity.{name}"), list.as_deref())
        };
        scheduling.cpus_initial = cpus("initial", affinity.initial())?;
        scheduling.cpus = cpus("final", affinity.cpu_affinity_final())?;
    }
    Ok(scheduling)
}

fn cpu(spec: &Scheduler) -> Result<CpuScheduler> {
    use LinuxSchedulerPolicy as Policy;
    let refuse = |field: &str, why: String| {
        let field = format!("process.scheduler.{field}");
        Err(Error::invalid(field, why))
    };
    let policy = *spec.policy();
    let nice = spec.nice().unwrap_or_default();
    if !(-20..=19).contains(&nice) {
        return refuse("nice", format!("{nice} is not in -20..=19"));
    }
    let priority = spec.priority().unwrap_or_default();
    if priority != 0 && !matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        return refuse("priority", "is for SCHED_FIFO and SCHED_RR only".to_owned());
    }
    let Ok(priority) = u32::try_from(priority) else {
        return refuse("priority", format!("{priority} is below 0"));
    };
    let times = [spec.runtime(), spec.deadline(), spec.period()];
    let [runtime_ns, deadline_ns, period_ns] = times.map(|time| time.unwrap_or_default());
    if policy != Policy::SchedDeadline && runtime_ns | deadline_ns | period_ns != 0 {
        let why = "runtime, deadline and period are for SCHED_DEADLINE only".to_owned();
        return refuse("policy", why);
    }
    if policy == Policy::SchedDeadline {
        check_deadline(spec, runtime_ns, deadline_ns, period_ns)?;
    }
    let flags = spec.flags().iter().flatten();
    Ok(CpuScheduler {
        policy: policy_number(policy),
        flags: flags.fold(0, |bits, flag| bits | flag_bit(*flag)),
        nice,
        priority,
        runtime_ns,
        deadline_ns,
        period_ns,
    })
}

/// The kernel says no more than "invalid argument" to these (sched(7)); the words are crun's.
fn check_deadline(
    spec: &Scheduler,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
) -> Result<()> {
    let between = |ns: u64| (DEADLINE_NS_MIN..=DEADLINE_NS_MAX).contains(&ns);
    let range = |name: &str, ns: u64| {
        format!("{name} ({ns}) must be between {DEADLINE_NS_MIN} and {DEADLINE_NS_MAX}")
    };
    let why = if spec.runtime().is_none() {
        "requires `runtime`".to_owned()
    } else if spec.deadline().is_none() {
        "requires `deadline`".to_owned()
    } else if runtime_ns == 0 {
        "runtime must be greater than 0".to_owned()
    } else if !between(runtime_ns) {
        range("runtime", runtime_ns)
    } else if !between(deadline_ns) {
        range("deadline", deadline_ns)
    } else if period_ns != 0 && !between(period_ns) {
        range("period", period_ns)
    } else if runtime_ns > deadline_ns {
        format!("runtime ({runtime_ns}) must be <= deadline ({deadline_ns})")
    } else if period_ns != 0 && deadline_ns > period_ns {
        format!("deadline ({deadline_ns}) must be <= period ({period_ns})")
    } else {
        return Ok(());
    };
    Err(Error::invalid(
        "process.scheduler",
        format!("sched_setattr: `SCHED_DEADLINE` {why}"),
    ))
}

/// linux/sched.h.
fn policy_number(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

/// linux/sched.h.
fn flag_bit(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// Class and level as linux/ioprio.h has them in one number.
fn io(spec: LinuxIOPriority) -> Result<u32> {
    let class = match spec.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(spec.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => {
            let why = format!("{} is not in 0..=7", spec.priority());
            Err(Error::invalid("process.ioPriority.priority", why))
        }
    }
}

fn memory(spec: &LinuxMemoryPolicy) -> Result<MemoryPolicy> {
    // linux/mempolicy.h.
    let mode = match spec.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = spec.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    });
    let nodes = numbers("linux.memoryPolicy.nodes", spec.nodes().as_deref());
    let nodes = nodes.map_err(|error| match error {
        Error::Invalid { field, why } => {
            Error::invalid(field, format!("invalid memory policy node: {why}"))
        }
        other => other,
    })?;
    let takes_none = matches!(
        spec.mode(),
        MemoryPolicyModeType::MpolDefault | MemoryPolicyModeType::MpolLocal
    );
    if takes_none && !nodes.is_empty() {
        let why = format!("mode requires 0 nodes but got {}", nodes.len());
        return Err(Error::invalid("linux.memoryPolicy.nodes", why));
    }
    Ok(MemoryPolicy {
        mode: flags.fold(mode, |bits, flag: u32| bits | flag),
        nodes,
    })
}

/// A list as the kernel writes it, `0-3,7`, as numbers.
fn numbers(field: &str, list: Option<&str>) -> Result<Vec<u32>> {
    let list = list.unwrap_or_default().trim();
    let wrong = || Error::invalid(field, format!("{list:?} is no list of numbers and ranges"));
    let mut found = Vec::new();
    for part in list.split(',').filter(|_| !list.is_empty()) {
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_text| wrong());
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(wrong());
        }
        if last > NUMBER_MAX {
            return Err(Error::invalid(
                field,
                format!("{last} is above {NUMBER_MAX}"),
            ));
        }
        found.extend(first..=last);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_numbers_and_ranges() {
        let check = |text, expected: &[u32]| assert_eq!(numbers("x", text).unwrap(), expected);
        check(None, &[]);
        check(Some(""), &[]);
        check(Some("0-2, 7,1"), &[0, 1, 2, 7]);
        for wrong in ["a", "1-", "-1", "2-1", ",", "0-8192"] {
            assert!(numbers("x", Some(wrong)).is_err(), "{wrong}");
        }
    }
}
