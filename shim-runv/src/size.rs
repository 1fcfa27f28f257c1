//! How large a machine is: a pure function of config.json.

use cgroups::Resources;
use cgroups::resources::Memory;
use serde_json::Value;

/// How large a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Processors.
    pub(crate) processors: u32,
}

/// Memory of a machine whose container has no limit, in MiB; the host gives only what is touched.
pub(crate) const MEMORY_MIB: u64 = 512;

/// What kernel and agent take beside a container's limit, in MiB.
const OVERHEAD_MIB: u64 = 128;

/// The smallest size class, in MiB.
const CLASS_MIB_MIN: u64 = 256;

/// The largest one, in MiB.
const CLASS_MIB_MAX: u64 = 4096;
/// What QEMU and virtiofsd take on the host beside the machine's memory, in MiB: more than was ever seen.
const HOST_MIB: u64 = 256;

/// And the part of the machine's memory that their tables of it take, of two bytes in 512 and some more.
const TABLES_PART: u64 = 64;

impl Size {
    /// The limits of its processes on the host, which only one that is out of hand comes up to.
    pub(crate) fn on_host(self) -> Resources {
        let mib = self.memory_mib + self.memory_mib / TABLES_PART + HOST_MIB;
        Resources {
            memory: Memory {
                limit: i64::try_from(mib << 20).ok(),
                ..Memory::default()
            },
            ..Resources::default()
        }
    }
}

/// The machine for these resources: as many processors as the container's share of time needs, at most
/// `host_processors`, and memory for its limit, so that the limit is what it hits. For a sandbox, the annotations in which
/// containerd (from 1.7) tells the sums of its containers come first.
pub(crate) fn size(config: &Value, host_processors: u32) -> Size {
    let resources = &config["linux"]["resources"];
    let cpu = &resources["cpu"];
    let told = |name: &str| {
        let value = config["annotations"][format!("io.kubernetes.cri.sandbox-{name}")].as_str();
        value?.parse::<u64>().ok().filter(|value| *value > 0)
    };
    let limit = told("memory").or_else(|| resources["memory"]["limit"].as_u64());
    let quota = told("cpu-quota").or_else(|| cpu["quota"].as_u64());
    let period = told("cpu-period").or_else(|| cpu["period"].as_u64());
    let wanted = match (quota, period.unwrap_or(100_000)) {
        (Some(quota), period) if period > 0 => quota.div_ceil(period),
        _ => 1,
    };
    let processors = u32::try_from(wanted).unwrap_or(u32::MAX);
    let memory_mib = limit.map_or(MEMORY_MIB, |bytes| bytes.div_ceil(1 << 20) + OVERHEAD_MIB);
    Size {
        memory_mib: class(memory_mib),
        processors: processors.clamp(1, host_processors.max(1)),
    }
}

/// Processors of this host.
pub(crate) fn host_processors() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(processors).unwrap_or(u32::MAX)
}

/// Whether so much memory is one of the size classes.
pub(crate) fn is_class(memory_mib: u64) -> bool {
    (CLASS_MIB_MIN..=CLASS_MIB_MAX).contains(&memory_mib) && memory_mib.is_power_of_two()
}

/// The size class of so much memory: machines come in few sizes, each twice the one before. A container's
/// own limit holds in any of them, and the host gives only what is touched. Above the largest class there
/// is none.
fn class(memory_mib: u64) -> u64 {
    match memory_mib {
        ..=CLASS_MIB_MAX => memory_mib.next_power_of_two().max(CLASS_MIB_MIN),
        _ => memory_mib,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn on_the_host_a_machine_has_room_beside_its_memory() {
        let size = Size {
            memory_mib: 512,
            processors: 1,
        };
        assert_eq!(size.on_host().memory.limit, Some((512 + 8 + 256) << 20));
    }

    #[test]
    fn a_machine_is_as_large_as_its_container_needs() {
        let check = |resources: Value, memory_mib, processors| {
            let config = json!({"linux": {"resources": resources}});
            let expected = Size {
                memory_mib,
                processors,
            };
            assert_eq!(size(&config, 4), expected);
        };
        check(json!({}), 512, 1);
        check(json!({"memory": {"limit": 64 << 20}}), 256, 1);
        check(json!({"memory": {"limit": 129 << 20}}), 512, 1);
        check(json!({"memory": {"limit": 8_u64 << 30}}), 8320, 1);
        check(json!({"memory": {"limit": -1}}), 512, 1);
        check(
            json!({"cpu": {"quota": 150_000, "period": 100_000}}),
            512,
            2,
        );
        check(
            json!({"cpu": {"quota": 10_000_000, "period": 100_000}}),
            512,
            4,
        );
        check(json!({"cpu": {"quota": 5, "period": 0}}), 512, 1);
    }

    #[test]
    fn a_pods_machine_is_as_large_as_its_containers_need() {
        let config = json!({"annotations": {
            "io.kubernetes.cri.sandbox-memory": "67108864",
            "io.kubernetes.cri.sandbox-cpu-quota": "150000",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
        }, "linux": {"resources": {"memory": {"limit": 1 << 20}}}});
        let expected = Size {
            memory_mib: 256,
            processors: 2,
        };
        assert_eq!(size(&config, 4), expected);
        let config = json!({"annotations": {"io.kubernetes.cri.sandbox-memory": "0"}});
        assert_eq!(size(&config, 4).memory_mib, MEMORY_MIB);
    }
}
