//! What a container has used, as plain numbers.
//!
//! The fields are those of containerd's two `Metrics` messages (containerd/cgroups,
//! cgroup1/stats and cgroup2/stats), so that a caller only copies. Nothing here reads a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Numbers of one container at one moment. A controller that the host lacks leaves its defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Stats {
    /// Version 1 (and hybrid: the controllers are version 1's).
    V1(Box<StatsV1>),
    /// Version 2.
    V2(Box<StatsV2>),
}

/// Numbers of version 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsV1 {
    /// By page size.
    pub hugetlb: Vec<Hugetlb>,
    /// Tasks.
    pub pids: PidsUsage,
    /// Processor time.
    pub cpu: CpuV1,
    /// Memory.
    pub memory: MemoryV1,
    /// Block devices.
    pub blkio: BlkioV1,
    /// RDMA.
    pub rdma: Rdma,
}

/// Numbers of version 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsV2 {
    /// By page size.
    pub hugetlb: Vec<Hugetlb>,
    /// Tasks.
    pub pids: PidsUsage,
    /// Processor time.
    pub cpu: CpuV2,
    /// Memory.
    pub memory: MemoryV2,
    /// Block devices.
    pub io: IoV2,
    /// RDMA.
    pub rdma: Rdma,
}

/// Tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsUsage {
    /// How many now.
    pub current: u64,
    /// How many at most; 0 is no limit.
    pub limit: u64,
}

/// Huge pages of one size; bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hugetlb {
    /// e.g. `2MB`.
    pub page_size: String,
    /// In use.
    pub usage: u64,
    /// Version 1: the most that was in use. Version 2: the limit, `u64::MAX` is none.
    pub max: u64,
    /// Times the limit was hit.
    pub failcnt: u64,
}

/// RDMA.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rdma {
    /// In use.
    pub current: Vec<RdmaEntry>,
    /// Limits; `u32::MAX` is none.
    pub limit: Vec<RdmaEntry>,
}

/// One RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaEntry {
    /// Its name.
    pub device: String,
    /// Handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

/// Processor time of version 1, nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuV1 {
    /// All.
    pub total_ns: u64,
    /// In the kernel.
    pub kernel_ns: u64,
    /// In user space.
    pub user_ns: u64,
    /// All, by processor.
    pub per_cpu_ns: Vec<u64>,
    /// In the kernel, by processor; empty before Linux 4.6.
    pub per_cpu_kernel_ns: Vec<u64>,
    /// In user space, by processor; empty before Linux 4.6.
    pub per_cpu_user_ns: Vec<u64>,
    /// Periods that passed with a quota.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period.
    pub throttled_ns: u64,
}

/// Memory of version 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryV1 {
    /// Every line of memory.stat by its name in the kernel (`total_rss`, `pgfault`, ..), bytes or
    /// counts.
    pub stat: BTreeMap<String, u64>,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// Kernel memory.
    pub kernel: MemoryEntry,
    /// Kernel memory of TCP buffers.
    pub kernel_tcp: MemoryEntry,
    /// The OOM killer of the cgroup.
    pub oom: OomControl,
}

/// A counter of memory, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEntry {
    /// The limit.
    pub limit: u64,
    /// In use.
    pub usage: u64,
    /// The most that was in use.
    pub max: u64,
    /// Times the limit was hit.
    pub failcnt: u64,
}

/// memory.oom_control.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomControl {
    /// 1: tasks wait instead of being killed.
    pub oom_kill_disable: u64,
    /// 1: tasks wait now.
    pub under_oom: u64,
    /// Tasks killed so far (Linux 4.13).
    pub oom_kill: u64,
}

/// Block devices of version 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioV1 {
    /// Bytes.
    pub io_service_bytes: Vec<BlkioEntry>,
    /// Operations.
    pub io_serviced: Vec<BlkioEntry>,
    /// Operations waiting.
    pub io_queued: Vec<BlkioEntry>,
    /// Nanoseconds at work.
    pub io_service_time: Vec<BlkioEntry>,
    /// Nanoseconds waiting.
    pub io_wait_time: Vec<BlkioEntry>,
    /// Operations merged.
    pub io_merged: Vec<BlkioEntry>,
    /// Time the device was given, milliseconds.
    pub io_time: Vec<BlkioEntry>,
    /// Sectors.
    pub sectors: Vec<BlkioEntry>,
}

/// One number of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioEntry {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`, or empty.
    pub op: String,
    /// The number.
    pub value: u64,
}

/// Processor time of version 2, microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuV2 {
    /// All.
    pub usage_us: u64,
    /// In user space.
    pub user_us: u64,
    /// In the kernel.
    pub system_us: u64,
    /// Periods that passed with a quota.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled: u64,
    /// Time spent waiting for the next period.
    pub throttled_us: u64,
    /// Periods with a burst.
    pub bursts: u64,
    /// Time used above the quota.
    pub burst_us: u64,
    /// cpu.pressure; none without PSI.
    pub psi: Option<Psi>,
}

/// Memory of version 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryV2 {
    /// Every line of memory.stat by its name in the kernel (`anon`, `pgfault`, ..), bytes or counts.
    pub stat: BTreeMap<String, u64>,
    /// In use, bytes.
    pub usage: u64,
    /// Limit, bytes; `u64::MAX` is none.
    pub usage_limit: u64,
    /// The most that was in use, bytes (Linux 5.19).
    pub max_usage: u64,
    /// Swap in use, bytes.
    pub swap_usage: u64,
    /// Limit of swap, bytes; `u64::MAX` is none.
    pub swap_limit: u64,
    /// The most swap that was in use, bytes (Linux 6.5).
    pub swap_max_usage: u64,
    /// memory.events.
    pub events: MemoryEvents,
    /// memory.pressure; none without PSI.
    pub psi: Option<Psi>,
}

/// memory.events: how many times what happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEvents {
    /// Reclaimed below the soft protection.
    pub low: u64,
    /// Throttled at memory.high.
    pub high: u64,
    /// Stopped at memory.max.
    pub max: u64,
    /// Allocation about to fail.
    pub oom: u64,
    /// Tasks killed.
    pub oom_kill: u64,
    /// Groups killed (Linux 5.17).
    pub oom_group_kill: u64,
}

/// Block devices of version 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IoV2 {
    /// By device.
    pub usage: Vec<IoEntry>,
    /// io.pressure; none without PSI.
    pub psi: Option<Psi>,
}

/// One block device of version 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoEntry {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ios: u64,
    /// Writes.
    pub write_ios: u64,
}

/// Pressure stall information of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Psi {
    /// At least one task waited.
    pub some: PsiLine,
    /// All tasks waited.
    pub full: PsiLine,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PsiLine {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// Microseconds since ever.
    pub total_us: u64,
}
