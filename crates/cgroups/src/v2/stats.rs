//! All numbers of version 2.

use std::path::Path;

use super::{cpu, hugetlb, io, memory};
use crate::stats::{PidsUsage, StatsV2};
use crate::v1::pids;
use crate::{Result, file, rdma};

/// Reads them. An error that [`crate::Error::is_not_found`] says that the cgroup is gone.
pub(crate) fn read(dir: &Path) -> Result<StatsV2> {
    let pids = match pids::read(dir)? {
        Some(pids) => pids,
        // Without the controller: what can be counted.
        None => PidsUsage {
            current: processes(dir)?,
            limit: 0,
        },
    };
    Ok(StatsV2 {
        pids,
        cpu: cpu::read(dir)?,
        memory: memory::read(dir)?.unwrap_or_default(),
        io: io::read(dir)?,
        hugetlb: hugetlb::read(dir)?,
        rdma: rdma::read(dir)?,
    })
}

fn processes(dir: &Path) -> Result<u64> {
    let text = match file::read_if_there(dir, "cgroup.procs")? {
        Some(text) => text,
        None => file::read(dir, "cgroup.threads")?,
    };
    Ok(u64::try_from(text.lines().count()).unwrap_or(u64::MAX))
}
