//! All numbers of version 1, each from its controller's hierarchy.

use super::{blkio, cpu, hugetlb, memory, pids};
use crate::hierarchies::Controller;
use crate::paths::CgroupPaths;
use crate::stats::StatsV1;
use crate::{Result, rdma};

/// Reads them. An error that [`crate::Error::is_not_found`] says that the cgroup is gone.
pub(crate) fn read(paths: &CgroupPaths) -> Result<StatsV1> {
    let mut stats = StatsV1::default();
    if let Some(dir) = paths.legacy(Controller::Memory) {
        stats.memory = memory::read(dir)?;
    }
    if let Some(dir) = paths.legacy(Controller::Cpuacct) {
        cpu::read_time(dir, &mut stats.cpu)?;
    }
    if let Some(dir) = paths.legacy(Controller::Cpu) {
        cpu::read_throttling(dir, &mut stats.cpu)?;
    }
    if let Some(dir) = paths.legacy(Controller::Pids) {
        stats.pids = pids::read(dir)?.unwrap_or_default();
    }
    if let Some(dir) = paths.legacy(Controller::Blkio) {
        stats.blkio = blkio::read(dir)?;
    }
    if let Some(dir) = paths.legacy(Controller::Hugetlb) {
        stats.hugetlb = hugetlb::read(dir)?;
    }
    if let Some(dir) = paths.legacy(Controller::Rdma) {
        stats.rdma = rdma::read(dir)?;
    }
    Ok(stats)
}
