//! `linux.resources` (config-linux.md, Control groups).

use cgroups::resources::{
    Access, BlockIo, Cpu, DeviceKind, DeviceRule, HugepageLimit, InterfacePriority, Memory,
    Network, Pids, RdmaLimit, Resources, ThrottleDevice, Verdict, WeightDevice,
};
use launch::plan::DeviceNode;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory,
    LinuxNetwork, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice,
};

use crate::{Error, Result};

/// Converts limits, without device rules: an update leaves them as they are, as runc does.
///
/// # Errors
/// [`Error::Invalid`] for a number outside its type.
pub fn resources(spec: &LinuxResources) -> Result<Resources> {
    Ok(Resources {
        cpu: spec.cpu().as_ref().map(cpu).unwrap_or_default(),
        memory: spec.memory().as_ref().map(memory).unwrap_or_default(),
        pids: Pids {
            limit: spec.pids().map(|pids| pids.limit()),
        },
        block_io: spec
            .block_io()
            .as_ref()
            .map(block_io)
            .transpose()?
            .unwrap_or_default(),
        hugetlb: hugetlb(spec.hugepage_limits().as_deref().unwrap_or_default())?,
        network: spec.network().as_ref().map(network).unwrap_or_default(),
        devices: Vec::new(),
        rdma: spec
            .rdma()
            .iter()
            .flatten()
            .map(|(name, limit)| {
                let limit = RdmaLimit {
                    hca_handles: limit.hca_handles(),
                    hca_objects: limit.hca_objects(),
                };
                (name.clone(), limit)
            })
            .collect(),
        unified: spec
            .unified()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    })
}

/// Converts limits and device rules of a new container: its own rules, then what every container
/// may do (runc's list, appended so that nobody can take it away).
///
/// # Errors
/// As [`resources`], and a device rule without access.
pub(crate) fn initial(spec: Option<&LinuxResources>, nodes: &[DeviceNode]) -> Result<Resources> {
    let mut all = spec.map(resources).transpose()?.unwrap_or_default();
    let rules = spec
        .and_then(|spec| spec.devices().as_deref())
        .unwrap_or_default();
    for (i, rule) in rules.iter().enumerate() {
        all.devices
            .push(device_rule(&format!("linux.resources.devices[{i}]"), rule)?);
    }
    all.devices.extend(default_rules(nodes));
    Ok(all)
}

fn cpu(spec: &LinuxCpu) -> Cpu {
    Cpu {
        shares: spec.shares(),
        quota_us: spec.quota(),
        period_us: spec.period(),
        burst_us: spec.burst(),
        realtime_runtime_us: spec.realtime_runtime(),
        realtime_period_us: spec.realtime_period(),
        cpus: spec.cpus().clone(),
        mems: spec.mems().clone(),
        idle: spec.idle(),
    }
}

fn memory(spec: &LinuxMemory) -> Memory {
    Memory {
        limit: spec.limit(),
        reservation: spec.reservation(),
        swap: spec.swap(),
        kernel: spec.kernel(),
        kernel_tcp: spec.kernel_tcp(),
        swappiness: spec.swappiness(),
        disable_oom_killer: spec.disable_oom_killer().unwrap_or_default(),
        check_before_update: spec.check_before_update().unwrap_or_default(),
    }
}

fn block_io(spec: &LinuxBlockIo) -> Result<BlockIo> {
    let field = |name: &str| format!("linux.resources.blockIO.{name}");
    let weights = spec.weight_device().as_deref().unwrap_or_default();
    let throttle = |name: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        let devices = devices.as_deref().unwrap_or_default();
        let device = |device: &LinuxThrottleDevice| throttle_device(&field(name), device);
        devices.iter().map(device).collect::<Result<Vec<_>>>()
    };
    let weight = |device: &LinuxWeightDevice| weight_device(&field("weightDevice"), device);
    Ok(BlockIo {
        weight: spec.weight(),
        leaf_weight: spec.leaf_weight(),
        weight_device: weights.iter().map(weight).collect::<Result<_>>()?,
        throttle_read_bps: throttle("throttleReadBpsDevice", spec.throttle_read_bps_device())?,
        throttle_write_bps: throttle("throttleWriteBpsDevice", spec.throttle_write_bps_device())?,
        throttle_read_iops: throttle("throttleReadIOPSDevice", spec.throttle_read_iops_device())?,
        throttle_write_iops: throttle(
            "throttleWriteIOPSDevice",
            spec.throttle_write_iops_device(),
        )?,
    })
}

fn weight_device(field: &str, spec: &LinuxWeightDevice) -> Result<WeightDevice> {
    Ok(WeightDevice {
        major: device_number(field, spec.major())?,
        minor: device_number(field, spec.minor())?,
        weight: spec.weight(),
        leaf_weight: spec.leaf_weight(),
    })
}

fn throttle_device(field: &str, spec: &LinuxThrottleDevice) -> Result<ThrottleDevice> {
    Ok(ThrottleDevice {
        major: device_number(field, spec.major())?,
        minor: device_number(field, spec.minor())?,
        rate: spec.rate(),
    })
}

fn hugetlb(specs: &[LinuxHugepageLimit]) -> Result<Vec<HugepageLimit>> {
    let limit = |spec: &LinuxHugepageLimit| {
        let limit = u64::try_from(spec.limit()).map_err(|_range| {
            let why = format!("{} is no number of bytes", spec.limit());
            Error::invalid("linux.resources.hugepageLimits", why)
        })?;
        let page_size = spec.page_size().clone();
        Ok(HugepageLimit { page_size, limit })
    };
    specs.iter().map(limit).collect()
}

fn network(spec: &LinuxNetwork) -> Network {
    let priorities = spec.priorities().as_deref().unwrap_or_default();
    Network {
        class_id: spec.class_id(),
        priorities: priorities
            .iter()
            .map(|p| InterfacePriority {
                name: p.name().clone(),
                priority: p.priority(),
            })
            .collect(),
    }
}

fn device_number(field: &str, value: i64) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_range| Error::invalid(field, format!("{value} is no device number")))
}

fn device_rule(field: &str, spec: &LinuxDeviceCgroup) -> Result<DeviceRule> {
    let letters = spec.access().as_deref().unwrap_or_default();
    let access = match Access::parse(letters) {
        Some(access) if !access.is_empty() => access,
        _ => {
            let why = format!("{letters:?} is not made of r, w and m");
            return Err(Error::invalid(format!("{field}.access"), why));
        }
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => device_number(field, value).map(Some),
    };
    let kind = match spec.typ() {
        None | Some(LinuxDeviceType::A) => DeviceKind::All,
        Some(LinuxDeviceType::B) => DeviceKind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
        Some(LinuxDeviceType::P) => {
            return Err(Error::invalid(
                format!("{field}.type"),
                "\"p\" has no device rules",
            ));
        }
    };
    Ok(DeviceRule {
        verdict: if spec.allow() {
            Verdict::Allow
        } else {
            Verdict::Deny
        },
        kind,
        major: number(spec.major())?,
        minor: number(spec.minor())?,
        access,
    })
}

/// The default nodes of every container: /dev/null and its kin.
const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
];

fn default_rules(nodes: &[DeviceNode]) -> impl Iterator<Item = DeviceRule> {
    let allow = |kind, major, minor, access| DeviceRule {
        verdict: Verdict::Allow,
        kind,
        major,
        minor,
        access,
    };
    let char = move |major, minor| allow(DeviceKind::Char, Some(major), minor, Access::ALL);
    // Making a node of any device is harmless: opening it is what a rule is about.
    let make =
        [DeviceKind::Char, DeviceKind::Block].map(|kind| allow(kind, None, None, Access::MKNOD));
    // A node of the specification at the same path takes the place of the default one.
    let nodes = DEFAULT_NODES
        .into_iter()
        .filter(|(path, ..)| !nodes.iter().any(|node| node.path == *path))
        .map(move |(_, major, minor)| char(major, Some(minor)));
    // Pseudo-terminals, /dev/ptmx, and /dev/net/tun, which callers count on since Docker's days.
    let others = [char(136, None), char(5, Some(2)), char(10, Some(200))];
    make.into_iter()
        .chain(nodes.collect::<Vec<_>>())
        .chain(others)
}
