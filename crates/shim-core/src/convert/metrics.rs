//! Stats as containerd's metrics messages, of the version the cgroups are of.

use cgroups::stats::{
    BlkioEntry, BlkioV1, CpuV1, CpuV2, IoV2, MemoryEntry, MemoryV1, MemoryV2, Psi, PsiLine, Rdma,
    RdmaEntry, StatsV1, StatsV2,
};
use containerd_shim_protos::api::StatsResponse;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};

use super::any;
use crate::runtime::Stats;

/// The answer to `Stats`.
pub(crate) fn stats_response(stats: &Stats) -> StatsResponse {
    let stats = match stats {
        Stats::V1(stats) => any(&metrics_v1(stats), "io.containerd.cgroups.v1.Metrics"),
        Stats::V2(stats) => any(&metrics_v2(stats), "io.containerd.cgroups.v2.Metrics"),
    };
    StatsResponse {
        stats,
        ..Default::default()
    }
}

fn metrics_v1(stats: &StatsV1) -> v1::Metrics {
    let hugetlb = stats.hugetlb.iter().map(|page| v1::HugetlbStat {
        usage: page.usage,
        max: page.max,
        failcnt: page.failcnt,
        pagesize: page.page_size.clone(),
        ..Default::default()
    });
    v1::Metrics {
        hugetlb: hugetlb.collect(),
        pids: MessageField::some(v1::PidsStat {
            current: stats.pids.current,
            limit: stats.pids.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(cpu_v1(&stats.cpu)),
        memory: MessageField::some(memory_v1(&stats.memory)),
        blkio: MessageField::some(blkio_v1(&stats.blkio)),
        rdma: MessageField::some(rdma_v1(&stats.rdma)),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill_disable: stats.memory.oom.oom_kill_disable,
            under_oom: stats.memory.oom.under_oom,
            oom_kill: stats.memory.oom.oom_kill,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn cpu_v1(cpu: &CpuV1) -> v1::CPUStat {
    v1::CPUStat {
        usage: MessageField::some(v1::CPUUsage {
            total: cpu.total_ns,
            kernel: cpu.kernel_ns,
            user: cpu.user_ns,
            per_cpu: cpu.per_cpu_ns.clone(),
            ..Default::default()
        }),
        throttling: MessageField::some(v1::Throttle {
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_time: cpu.throttled_ns,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory_v1(memory: &MemoryV1) -> v1::MemoryStat {
    let of = |name: &str| memory.stat.get(name).copied().unwrap_or(0);
    v1::MemoryStat {
        cache: of("cache"),
        rss: of("rss"),
        rss_huge: of("rss_huge"),
        mapped_file: of("mapped_file"),
        dirty: of("dirty"),
        writeback: of("writeback"),
        pg_pg_in: of("pgpgin"),
        pg_pg_out: of("pgpgout"),
        pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        hierarchical_memory_limit: of("hierarchical_memory_limit"),
        hierarchical_swap_limit: of("hierarchical_memsw_limit"),
        total_cache: of("total_cache"),
        total_rss: of("total_rss"),
        total_rss_huge: of("total_rss_huge"),
        total_mapped_file: of("total_mapped_file"),
        total_dirty: of("total_dirty"),
        total_writeback: of("total_writeback"),
        total_pg_pg_in: of("total_pgpgin"),
        total_pg_pg_out: of("total_pgpgout"),
        total_pg_fault: of("total_pgfault"),
        total_pg_maj_fault: of("total_pgmajfault"),
        total_inactive_anon: of("total_inactive_anon"),
        total_active_anon: of("total_active_anon"),
        total_inactive_file: of("total_inactive_file"),
        total_active_file: of("total_active_file"),
        total_unevictable: of("total_unevictable"),
        usage: memory_entry_v1(memory.usage),
        swap: memory_entry_v1(memory.swap),
        kernel: memory_entry_v1(memory.kernel),
        kernel_tcp: memory_entry_v1(memory.kernel_tcp),
        ..Default::default()
    }
}

fn memory_entry_v1(entry: MemoryEntry) -> MessageField<v1::MemoryEntry> {
    MessageField::some(v1::MemoryEntry {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
        ..Default::default()
    })
}

fn blkio_v1(blkio: &BlkioV1) -> v1::BlkIOStat {
    v1::BlkIOStat {
        io_service_bytes_recursive: blkio_entries_v1(&blkio.io_service_bytes),
        io_serviced_recursive: blkio_entries_v1(&blkio.io_serviced),
        io_queued_recursive: blkio_entries_v1(&blkio.io_queued),
        io_service_time_recursive: blkio_entries_v1(&blkio.io_service_time),
        io_wait_time_recursive: blkio_entries_v1(&blkio.io_wait_time),
        io_merged_recursive: blkio_entries_v1(&blkio.io_merged),
        io_time_recursive: blkio_entries_v1(&blkio.io_time),
        sectors_recursive: blkio_entries_v1(&blkio.sectors),
        ..Default::default()
    }
}

fn blkio_entries_v1(entries: &[BlkioEntry]) -> Vec<v1::BlkIOEntry> {
    let entries = entries.iter().map(|entry| v1::BlkIOEntry {
        op: entry.op.clone(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..Default::default()
    });
    entries.collect()
}

fn rdma_v1(rdma: &Rdma) -> v1::RdmaStat {
    let of = |entry: &RdmaEntry| v1::RdmaEntry {
        device: entry.device.clone(),
        hca_handles: entry.hca_handles,
        hca_objects: entry.hca_objects,
        ..Default::default()
    };
    v1::RdmaStat {
        current: rdma.current.iter().map(of).collect(),
        limit: rdma.limit.iter().map(of).collect(),
        ..Default::default()
    }
}

fn metrics_v2(stats: &StatsV2) -> v2::Metrics {
    let hugetlb = stats.hugetlb.iter().map(|page| v2::HugeTlbStat {
        current: page.usage,
        max: page.max,
        pagesize: page.page_size.clone(),
        failcnt: page.failcnt,
        ..Default::default()
    });
    let events = &stats.memory.events;
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: stats.pids.current,
            limit: stats.pids.limit,
            ..Default::default()
        }),
        cpu: MessageField::some(cpu_v2(&stats.cpu)),
        memory: MessageField::some(memory_v2(&stats.memory)),
        rdma: MessageField::some(rdma_v2(&stats.rdma)),
        io: MessageField::some(io_v2(&stats.io)),
        hugetlb: hugetlb.collect(),
        memory_events: MessageField::some(v2::MemoryEvents {
            low: events.low,
            high: events.high,
            max: events.max,
            oom: events.oom,
            oom_kill: events.oom_kill,
            oom_group_kill: events.oom_group_kill,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn cpu_v2(cpu: &CpuV2) -> v2::CPUStat {
    v2::CPUStat {
        usage_usec: cpu.usage_us,
        user_usec: cpu.user_us,
        system_usec: cpu.system_us,
        nr_periods: cpu.periods,
        nr_throttled: cpu.throttled,
        throttled_usec: cpu.throttled_us,
        psi: psi_v2(cpu.psi),
        nr_bursts: cpu.bursts,
        burst_usec: cpu.burst_us,
        ..Default::default()
    }
}

fn memory_v2(memory: &MemoryV2) -> v2::MemoryStat {
    let of = |name: &str| memory.stat.get(name).copied().unwrap_or(0);
    v2::MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_refault: of("workingset_refault"),
        workingset_activate: of("workingset_activate"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: memory.usage,
        usage_limit: memory.usage_limit,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        max_usage: memory.max_usage,
        swap_max_usage: memory.swap_max_usage,
        psi: psi_v2(memory.psi),
        ..Default::default()
    }
}

fn io_v2(io: &IoV2) -> v2::IOStat {
    let usage = io.usage.iter().map(|entry| v2::IOEntry {
        major: entry.major,
        minor: entry.minor,
        rbytes: entry.read_bytes,
        wbytes: entry.write_bytes,
        rios: entry.read_ios,
        wios: entry.write_ios,
        ..Default::default()
    });
    v2::IOStat {
        usage: usage.collect(),
        psi: psi_v2(io.psi),
        ..Default::default()
    }
}

fn rdma_v2(rdma: &Rdma) -> v2::RdmaStat {
    let of = |entry: &RdmaEntry| v2::RdmaEntry {
        device: entry.device.clone(),
        hca_handles: entry.hca_handles,
        hca_objects: entry.hca_objects,
        ..Default::default()
    };
    v2::RdmaStat {
        current: rdma.current.iter().map(of).collect(),
        limit: rdma.limit.iter().map(of).collect(),
        ..Default::default()
    }
}

fn psi_v2(psi: Option<Psi>) -> MessageField<v2::PSIStats> {
    let line = |line: PsiLine| {
        MessageField::some(v2::PSIData {
            avg10: line.avg10,
            avg60: line.avg60,
            avg300: line.avg300,
            total: line.total_us,
            ..Default::default()
        })
    };
    psi.map_or_else(MessageField::none, |psi| {
        MessageField::some(v2::PSIStats {
            some: line(psi.some),
            full: line(psi.full),
            ..Default::default()
        })
    })
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::Message as _;

    use super::*;

    #[test]
    fn metrics_are_of_the_version_of_the_cgroups() {
        let mut one = StatsV1::default();
        one.memory.stat.insert("pgpgin".to_owned(), 3);
        one.cpu.total_ns = 4;
        let response = stats_response(&Stats::V1(Box::new(one)));
        assert_eq!(response.stats.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&response.stats.value).unwrap();
        assert_eq!((metrics.memory.pg_pg_in, metrics.cpu.usage.total), (3, 4));

        let mut two = StatsV2::default();
        two.memory.stat.insert("anon".to_owned(), 5);
        two.memory.psi = Some(Psi::default());
        let response = stats_response(&Stats::V2(Box::new(two)));
        assert_eq!(response.stats.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&response.stats.value).unwrap();
        assert_eq!(
            (metrics.memory.anon, metrics.memory.psi.is_some()),
            (5, true)
        );
    }
}
