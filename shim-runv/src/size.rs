//! How large a machine is: a pure function of config.json.

use bundle::annotations::{RUNV_MEMORY_MAX, RUNV_PROCESSORS_MAX};
use cgroups::Resources;
use cgroups::resources::Memory;
use serde_json::Value;

use crate::{Error, Result};

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

/// The most that [`RUNV_MEMORY_MAX`] asks for, in MiB: no host has more.
const MEMORY_MIB_MAX: u64 = 64 << 20;

/// The most that [`RUNV_PROCESSORS_MAX`] asks for. A machine has no more than its host.
const PROCESSORS_MAX: u64 = 8192;

/// Microseconds of a period that none is told of (Documentation/admin-guide/cgroup-v2.rst, cpu.max).
const PERIOD_US: u64 = 100_000;

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

    /// Whether limits fit into it that a container is to have from now on, in place of those that it has. A machine does
    /// not grow; but what it was too small for at create is not asked for again by who leaves it as it is.
    ///
    /// # Errors
    /// [`Error::Usage`] with the limit, what the machine has, and how to get a larger one.
    pub(crate) fn check(self, before: Limits, wanted: Limits, host_processors: u32) -> Result<()> {
        let memory_mib = wanted.memory_mib();
        if memory_mib > before.memory_mib()
            && let Some(wanted) = memory_mib
            && wanted.saturating_add(OVERHEAD_MIB) > self.memory_mib
        {
            let has = self.memory_mib;
            return Err(Error::Usage(format!(
                "a memory limit of {wanted} MiB, and {OVERHEAD_MIB} MiB for kernel and agent, are more than the {has} MiB \
                 of the virtual machine, which does not grow: create the container or pod with the annotation \
                 {RUNV_MEMORY_MAX}={wanted}"
            )));
        }
        // As at create, nobody gets more than the host has.
        let [before, wanted] =
            [before, wanted].map(|it| it.processors().min(host_processors.into()));
        if wanted > before && wanted > self.processors.into() {
            let has = self.processors;
            return Err(Error::Usage(format!(
                "a CPU quota of {wanted} processors is more than the {has} of the virtual machine, which does not \
                 grow: create the container or pod with the annotation {RUNV_PROCESSORS_MAX}={wanted}"
            )));
        }
        Ok(())
    }
}

/// Limits of a container, as far as they say how large its machine has to be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In bytes.
    memory: Option<u64>,
    /// In microseconds of a period.
    quota: Option<u64>,
    /// In microseconds.
    period: Option<u64>,
}

impl Limits {
    /// Those of an OCI `linux.resources` object.
    pub(crate) fn of(resources: &Value) -> Self {
        Self::default().updated(resources)
    }

    /// These, and what such an object says in their place: 0 or nothing leaves one as it is, -1 takes it away.
    pub(crate) fn updated(self, resources: &Value) -> Self {
        let updated = |before: Option<u64>, told: &Value| match told.as_i64() {
            None | Some(0) => before,
            Some(told) => u64::try_from(told).ok(),
        };
        let cpu = &resources["cpu"];
        Self {
            memory: updated(self.memory, &resources["memory"]["limit"]),
            quota: updated(self.quota, &cpu["quota"]),
            period: updated(self.period, &cpu["period"]),
        }
    }

    fn memory_mib(self) -> Option<u64> {
        self.memory.map(|bytes| bytes.div_ceil(1 << 20))
    }

    fn processors(self) -> u64 {
        processors(self.quota, self.period)
    }
}

/// The machine for these resources: as many processors as the container's share of time needs, at most
/// `host_processors`, and memory for its limit, so that the limit is what it hits. For a sandbox, the annotations in which
/// containerd (from 1.7) tells the sums of its containers come first. Those that say how far limits are going to be raised
/// ask for a machine that has room for them.
///
/// # Errors
/// [`Error::Usage`] for an annotation of ours that is no number in its range.
pub(crate) fn size(config: &Value, host_processors: u32) -> Result<Size> {
    let resources = &config["linux"]["resources"];
    let cpu = &resources["cpu"];
    let told = |name: &str| {
        let value = config["annotations"][format!("io.kubernetes.cri.sandbox-{name}")].as_str();
        value?.parse::<u64>().ok().filter(|value| *value > 0)
    };
    let limit = told("memory").or_else(|| resources["memory"]["limit"].as_u64());
    let quota = told("cpu-quota").or_else(|| cpu["quota"].as_u64());
    let period = told("cpu-period").or_else(|| cpu["period"].as_u64());
    let wanted = processors(quota, period).max(most(config, RUNV_PROCESSORS_MAX, PROCESSORS_MAX)?);
    let processors = u32::try_from(wanted).unwrap_or(u32::MAX);
    let memory_max = most(config, RUNV_MEMORY_MAX, MEMORY_MIB_MAX)?;
    let limit = limit.map(|bytes| bytes.div_ceil(1 << 20).max(memory_max));
    let memory_mib = match limit {
        Some(limit) => limit + OVERHEAD_MIB,
        None => MEMORY_MIB.max(memory_max + OVERHEAD_MIB),
    };
    Ok(Size {
        memory_mib: class(memory_mib),
        processors: processors.clamp(1, host_processors.max(1)),
    })
}

/// How many processors give that much time; without a quota one.
fn processors(quota: Option<u64>, period: Option<u64>) -> u64 {
    match (quota, period.unwrap_or(PERIOD_US)) {
        (Some(quota), period) if period > 0 => quota.div_ceil(period),
        _ => 1,
    }
}

/// A number of ours, and 0 where there is none.
fn most(config: &Value, key: &str, max: u64) -> Result<u64> {
    let Some(text) = config["annotations"][key].as_str() else {
        return Ok(0);
    };
    let number = text.parse().ok();
    let number = number.filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| {
        Error::Usage(format!(
            "annotations.{key} is {text:?}, and no number from 1 to {max}"
        ))
    })
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
            assert_eq!(size(&config, 4).unwrap(), expected);
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
        assert_eq!(size(&config, 4).unwrap(), expected);
        let config = json!({"annotations": {"io.kubernetes.cri.sandbox-memory": "0"}});
        assert_eq!(size(&config, 4).unwrap().memory_mib, MEMORY_MIB);
    }

    #[test]
    fn room_for_limits_to_come_is_asked_for_in_whole_numbers() {
        let check = |annotations: Value,
                     limit: Option<u64>,
                     expected: std::result::Result<(u64, u32), &str>| {
            let resources = limit.map_or(json!({}), |it| json!({"memory": {"limit": it << 20}}));
            let config = json!({"annotations": annotations, "linux": {"resources": resources}});
            let found = size(&config, 4).map(|it| (it.memory_mib, it.processors));
            assert_eq!(
                found.map_err(|it| it.to_string()),
                expected.map_err(str::to_owned)
            );
        };
        check(json!({RUNV_MEMORY_MAX: "1024"}), Some(128), Ok((2048, 1)));
        check(json!({RUNV_MEMORY_MAX: "64"}), Some(300), Ok((512, 1)));
        check(json!({RUNV_MEMORY_MAX: "64"}), None, Ok((512, 1)));
        check(json!({RUNV_MEMORY_MAX: "900"}), None, Ok((2048, 1)));
        check(json!({RUNV_PROCESSORS_MAX: "3"}), None, Ok((512, 3)));
        check(json!({RUNV_PROCESSORS_MAX: "9"}), None, Ok((512, 4)));
        let odd =
            "annotations.org.pouch.runv.memory-max is \"1G\", and no number from 1 to 67108864";
        check(json!({RUNV_MEMORY_MAX: "1G"}), None, Err(odd));
        let none =
            "annotations.org.pouch.runv.processors-max is \"0\", and no number from 1 to 8192";
        check(json!({RUNV_PROCESSORS_MAX: "0"}), None, Err(none));
    }

    const MACHINE: Size = Size {
        memory_mib: 256,
        processors: 1,
    };

    #[test]
    fn limits_that_a_machine_has_no_room_for_are_refused_with_what_it_has() {
        let fits = |resources: Value, host: u32| {
            MACHINE.check(Limits::default(), Limits::of(&resources), host)
        };
        for resources in [
            json!({}),
            json!({"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 100_000}}),
            json!({"memory": {"limit": 128 << 20}, "cpu": {"quota": 50_000}}),
        ] {
            fits(resources, 4).unwrap();
        }
        // The host has no more.
        fits(json!({"cpu": {"quota": 400_000}}), 1).unwrap();
        let error = fits(json!({"memory": {"limit": 1 << 30}}), 4).unwrap_err();
        let expected = "a memory limit of 1024 MiB, and 128 MiB for kernel and agent, are more than the 256 MiB of the \
                        virtual machine, which does not grow: create the container or pod with the annotation \
                        org.pouch.runv.memory-max=1024";
        assert_eq!(error.to_string(), expected);
        let error = fits(json!({"memory": {"limit": (128 << 20) + 1}}), 4).unwrap_err();
        let error = error.to_string();
        assert!(error.ends_with("org.pouch.runv.memory-max=129"), "{error}");
        let error = fits(json!({"cpu": {"quota": 150_000, "period": 100_000}}), 4).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("more than the 1 of the virtual machine"),
            "{error}"
        );
        assert!(
            error.ends_with("org.pouch.runv.processors-max=2"),
            "{error}"
        );
    }

    #[test]
    fn what_an_update_does_not_raise_is_not_refused() {
        let created = json!({"memory": {"limit": 1 << 30}, "cpu": {"quota": 300_000}});
        let before = Limits::of(&created);
        let fits = |resources: Value| {
            let wanted = before.updated(&resources);
            MACHINE.check(before, wanted, 4).is_ok()
        };
        // CRI says all that a container has, and the one new value.
        let mut whole = created.clone();
        whole["cpu"]["shares"] = json!(512);
        assert!(fits(whole));
        assert!(fits(json!({"cpu": {"cpus": "0"}})));
        assert!(fits(
            json!({"memory": {"limit": 1 << 29}, "cpu": {"quota": 200_000}})
        ));
        assert!(fits(
            json!({"memory": {"limit": 0}, "cpu": {"quota": 0, "period": 0}})
        ));
        assert!(!fits(json!({"memory": {"limit": (1 << 30) + 1}})));
        assert!(!fits(json!({"cpu": {"quota": 300_001}})));
        // The quota that it has, in less time.
        assert!(!fits(json!({"cpu": {"period": 50_000}})));
        assert_eq!(
            before.updated(&json!({"memory": {"limit": -1}})).memory,
            None
        );
    }
}
