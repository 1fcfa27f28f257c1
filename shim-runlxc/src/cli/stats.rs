//! What a container uses in the words of `runc events`: the names of its JSON, version 1's units.

use std::collections::BTreeMap;

use cgroups::stats::{self, Stats, StatsV1, StatsV2};
use cgroups::{Cgroup, Result};
use serde::Serialize;

use super::cpuset::Cpuset;

/// `data` of an event of type `stats`.
#[derive(Debug, Serialize)]
pub(super) struct Usage {
    cpu: Cpu,
    cpuset: Cpuset,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, Hugetlb>,
    intel_rdt: BTreeMap<String, u64>,
    network_interfaces: Vec<u64>,
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

/// Nanoseconds.
#[derive(Debug, Default, Serialize)]
struct CpuUsage {
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_user: Vec<u64>,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

#[derive(Debug, Default, Serialize)]
struct Memory {
    cache: u64,
    usage: Counter,
    swap: Counter,
    kernel: Counter,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: Counter,
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

/// Bytes, but for the times its limit was hit.
#[derive(Debug, Default, Serialize)]
struct Counter {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Serialize)]
struct Pids {
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_queue_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_wait_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_merged_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_time_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sectors_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct BlkioEntry {
    major: u64,
    minor: u64,
    op: String,
    value: u64,
}

#[derive(Debug, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Serialize)]
struct Psi {
    some: PsiLine,
    full: PsiLine,
}

#[derive(Debug, Serialize)]
struct PsiLine {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    /// Microseconds.
    total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a cgroup uses now.
pub(super) fn usage(cgroup: &Cgroup) -> Result<Usage> {
    let cpuset = Cpuset::of(cgroup);
    Ok(match cgroup.stats()? {
        Stats::V1(stats) => version_1(*stats, cpuset),
        Stats::V2(stats) => version_2(*stats, cpuset),
    })
}

fn version_1(stats: StatsV1, cpuset: Cpuset) -> Usage {
    let (cpu, memory, blkio) = (stats.cpu, stats.memory, stats.blkio);
    let huge = |page: &stats::Hugetlb| Hugetlb {
        usage: page.usage,
        max: page.max,
        failcnt: page.failcnt,
    };
    Usage {
        cpu: Cpu {
            usage: CpuUsage {
                total: cpu.total_ns,
                percpu: cpu.per_cpu_ns,
                percpu_kernel: cpu.per_cpu_kernel_ns,
                percpu_user: cpu.per_cpu_user_ns,
                kernel: cpu.kernel_ns,
                user: cpu.user_ns,
            },
            throttling: Throttling {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_ns,
            },
            psi: None,
        },
        cpuset,
        memory: Memory {
            cache: memory.stat.get("cache").copied().unwrap_or(0),
            usage: counter(memory.usage),
            swap: counter(memory.swap),
            kernel: counter(memory.kernel),
            kernel_tcp: counter(memory.kernel_tcp),
            raw: memory.stat,
            psi: None,
        },
        pids: pids(stats.pids),
        blkio: Blkio {
            io_service_bytes_recursive: entries(blkio.io_service_bytes),
            io_serviced_recursive: entries(blkio.io_serviced),
            io_queue_recursive: entries(blkio.io_queued),
            io_service_time_recursive: entries(blkio.io_service_time),
            io_wait_time_recursive: entries(blkio.io_wait_time),
            io_merged_recursive: entries(blkio.io_merged),
            io_time_recursive: entries(blkio.io_time),
            sectors_recursive: entries(blkio.sectors),
            psi: None,
        },
        hugetlb: by_size(&stats.hugetlb, huge),
        intel_rdt: BTreeMap::new(),
        network_interfaces: Vec::new(),
    }
}

/// As runc translates: microseconds to nanoseconds, swap to memory and swap together, devices to
/// one entry for reads and one for writes.
fn version_2(stats: StatsV2, cpuset: Cpuset) -> Usage {
    let (cpu, memory) = (stats.cpu, stats.memory);
    let huge = |page: &stats::Hugetlb| Hugetlb {
        usage: page.usage,
        max: 0,
        failcnt: page.failcnt,
    };
    Usage {
        cpu: Cpu {
            usage: CpuUsage {
                total: nanoseconds(cpu.usage_us),
                kernel: nanoseconds(cpu.system_us),
                user: nanoseconds(cpu.user_us),
                ..CpuUsage::default()
            },
            throttling: Throttling {
                periods: cpu.periods,
                throttled_periods: cpu.throttled,
                throttled_time: nanoseconds(cpu.throttled_us),
            },
            psi: cpu.psi.map(pressure),
        },
        cpuset,
        memory: Memory {
            cache: memory.stat.get("file").copied().unwrap_or(0),
            usage: Counter {
                limit: memory.usage_limit,
                usage: memory.usage,
                max: memory.max_usage,
                failcnt: memory.events.max,
            },
            swap: Counter {
                limit: memory.swap_limit.saturating_add(memory.usage_limit),
                usage: memory.swap_usage.saturating_add(memory.usage),
                max: 0,
                failcnt: 0,
            },
            raw: memory.stat,
            psi: memory.psi.map(pressure),
            ..Memory::default()
        },
        pids: pids(stats.pids),
        blkio: Blkio {
            io_service_bytes_recursive: devices(&stats.io.usage, |io| {
                (io.read_bytes, io.write_bytes)
            }),
            io_serviced_recursive: devices(&stats.io.usage, |io| (io.read_ios, io.write_ios)),
            psi: stats.io.psi.map(pressure),
            ..Blkio::default()
        },
        hugetlb: by_size(&stats.hugetlb, huge),
        intel_rdt: BTreeMap::new(),
        network_interfaces: Vec::new(),
    }
}

fn nanoseconds(microseconds: u64) -> u64 {
    microseconds.saturating_mul(1000)
}

fn counter(entry: stats::MemoryEntry) -> Counter {
    Counter {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
    }
}

fn pids(usage: stats::PidsUsage) -> Pids {
    Pids {
        current: usage.current,
        limit: usage.limit,
    }
}

fn entries(entries: Vec<stats::BlkioEntry>) -> Vec<BlkioEntry> {
    let entries = entries.into_iter().map(|entry| BlkioEntry {
        major: entry.major,
        minor: entry.minor,
        op: entry.op,
        value: entry.value,
    });
    entries.collect()
}

fn devices(
    devices: &[stats::IoEntry],
    numbers: impl Fn(&stats::IoEntry) -> (u64, u64),
) -> Vec<BlkioEntry> {
    let entries = devices.iter().flat_map(|device| {
        let (read, write) = numbers(device);
        [("Read", read), ("Write", write)].map(|(op, value)| BlkioEntry {
            major: device.major,
            minor: device.minor,
            op: op.to_owned(),
            value,
        })
    });
    entries.collect()
}

fn by_size(
    pages: &[stats::Hugetlb],
    shown: impl Fn(&stats::Hugetlb) -> Hugetlb,
) -> BTreeMap<String, Hugetlb> {
    pages
        .iter()
        .map(|page| (page.page_size.clone(), shown(page)))
        .collect()
}

fn pressure(psi: stats::Psi) -> Psi {
    let line = |line: stats::PsiLine| PsiLine {
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
        total: line.total_us,
    };
    Psi {
        some: line(psi.some),
        full: line(psi.full),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(usage: &Usage) -> Value {
        serde_json::to_value(usage).unwrap()
    }

    #[test]
    fn version_2_is_told_in_the_units_of_version_1() {
        let mut stats = StatsV2::default();
        (stats.cpu.usage_us, stats.cpu.throttled_us) = (7, 2);
        (stats.memory.usage, stats.memory.usage_limit) = (100, 1000);
        (stats.memory.swap_usage, stats.memory.swap_limit) = (20, u64::MAX);
        stats.memory.events.max = 3;
        stats.memory.stat.insert("file".to_owned(), 64);
        stats.memory.psi = Some(stats::Psi::default());
        stats.io.usage.push(stats::IoEntry {
            major: 8,
            read_bytes: 5,
            write_ios: 6,
            ..stats::IoEntry::default()
        });
        stats.hugetlb.push(stats::Hugetlb {
            page_size: "2MB".to_owned(),
            usage: 9,
            max: 1,
            failcnt: 2,
        });
        let usage = shown(&version_2(stats, Cpuset::default()));
        assert_eq!(usage["cpu"]["usage"]["total"], 7000);
        assert_eq!(usage["cpu"]["throttling"], json!({"throttledTime": 2000}));
        assert_eq!(
            usage["memory"]["usage"],
            json!({"limit": 1000, "usage": 100, "failcnt": 3})
        );
        assert_eq!(
            usage["memory"]["swap"],
            json!({"limit": u64::MAX, "usage": 120, "failcnt": 0})
        );
        assert_eq!(usage["memory"]["cache"], 64);
        assert_eq!(usage["memory"]["psi"]["some"]["total"], 0);
        assert_eq!(
            usage["blkio"]["ioServiceBytesRecursive"],
            json!([{"major": 8, "minor": 0, "op": "Read", "value": 5},
                   {"major": 8, "minor": 0, "op": "Write", "value": 0}])
        );
        assert_eq!(usage["blkio"]["ioServicedRecursive"][1]["value"], 6);
        assert_eq!(usage["hugetlb"], json!({"2MB": {"usage": 9, "failcnt": 2}}));
    }

    #[test]
    fn version_1_is_told_as_it_is() {
        let mut stats = StatsV1::default();
        stats.cpu.per_cpu_ns = vec![1, 2];
        stats.memory.stat.insert("cache".to_owned(), 4);
        stats.memory.kernel_tcp.limit = 6;
        stats.blkio.io_queued.push(stats::BlkioEntry {
            major: 8,
            minor: 16,
            op: "Total".to_owned(),
            value: 1,
        });
        stats.pids.current = 3;
        let usage = shown(&version_1(stats, Cpuset::default()));
        assert_eq!(usage["cpu"]["usage"]["percpu"], json!([1, 2]));
        assert_eq!(usage["memory"]["cache"], 4);
        assert_eq!(
            usage["memory"]["kernelTCP"],
            json!({"limit": 6, "failcnt": 0})
        );
        assert_eq!(usage["blkio"]["ioQueueRecursive"][0]["minor"], 16);
        assert_eq!(usage["pids"], json!({"current": 3}));
    }
}
