//! Where a container may run, as `runc events` tells it. Of version 1 alone, as with runc.

use std::path::Path;

use cgroups::{Cgroup, Controller};
use serde::Serialize;

/// The files of the cpuset controller.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub(super) struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

impl Cpuset {
    /// What the kernel's files say; zero where it has no such file.
    pub(super) fn of(cgroup: &Cgroup) -> Self {
        let dir = cgroup.paths().legacy(Controller::Cpuset);
        dir.map(Self::read).unwrap_or_default()
    }

    fn read(dir: &Path) -> Self {
        let text = |name: &str| {
            // Version 1 mounted without its prefix (`noprefix`) has the bare names.
            let prefixed = std::fs::read_to_string(dir.join(format!("cpuset.{name}")));
            let text = prefixed.or_else(|_none| std::fs::read_to_string(dir.join(name)));
            text.unwrap_or_default().trim().to_owned()
        };
        let number = |name| text(name).parse().unwrap_or(0);
        Self {
            cpus: numbers(&text("cpus")),
            cpu_exclusive: number("cpu_exclusive"),
            mems: numbers(&text("mems")),
            mem_hardwall: number("mem_hardwall"),
            mem_exclusive: number("mem_exclusive"),
            memory_migrate: number("memory_migrate"),
            memory_spread_page: number("memory_spread_page"),
            memory_spread_slab: number("memory_spread_slab"),
            memory_pressure: number("memory_pressure"),
            sched_load_balance: number("sched_load_balance"),
            sched_relax_domain_level: text("sched_relax_domain_level").parse().unwrap_or(0),
        }
    }
}

/// `0-2,7` as numbers.
fn numbers(list: &str) -> Vec<u16> {
    let ranges = list.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_numbers_and_missing_files_zero() {
        assert_eq!(numbers("0-2,7"), [0, 1, 2, 7]);
        assert!(numbers("").is_empty());
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpuset.cpus", "0,3\n"),
            ("mems", "0\n"),
            ("cpuset.sched_load_balance", "1\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let expected = Cpuset {
            cpus: vec![0, 3],
            mems: vec![0],
            sched_load_balance: 1,
            sched_relax_domain_level: -1,
            ..Cpuset::default()
        };
        assert_eq!(Cpuset::read(dir.path()), expected);
    }
}
