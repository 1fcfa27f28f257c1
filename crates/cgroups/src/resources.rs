//! What a container may use, as closed values in the words of runtime-spec config-linux.md.
//!
//! Values are those of version 1, as the specification has them; `convert.rs` makes version 2 of
//! them. Nothing here touches a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `linux.resources`. A field that is `None` or empty leaves the kernel's value as it is.
///
/// As in runc, a zero of a field whose doc says so means the same as `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time and placement.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Number of tasks.
    pub pids: Pids,
    /// Block devices.
    pub block_io: BlockIo,
    /// Huge pages, one entry a page size.
    pub hugetlb: Vec<HugepageLimit>,
    /// Marks on network packets (version 1 only).
    pub network: Network,
    /// Device rules in their order; the starting point is "nothing is allowed". Empty: the rules
    /// of the cgroup stay as they are (an update).
    pub devices: Vec<DeviceRule>,
    /// RDMA limits by device name.
    pub rdma: BTreeMap<String, RdmaLimit>,
    /// Files of version 2 by name, written last. Refused on version 1 as by runc.
    pub unified: BTreeMap<String, String>,
}

/// `linux.resources.cpu`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Relative weight, 2..=262144; 0 is unset.
    pub shares: Option<u64>,
    /// Time in a period, microseconds; negative is no limit, 0 is unset.
    pub quota_us: Option<i64>,
    /// Length of a period, microseconds; 0 is unset.
    pub period_us: Option<u64>,
    /// Unused quota that may be saved up, microseconds.
    pub burst_us: Option<u64>,
    /// Real-time time in a real-time period, microseconds; 0 is unset. Version 1 only.
    pub realtime_runtime_us: Option<i64>,
    /// Length of a real-time period, microseconds; 0 is unset. Version 1 only.
    pub realtime_period_us: Option<u64>,
    /// Processors, e.g. `0-3,7`; empty is unset.
    pub cpus: Option<String>,
    /// Memory nodes, e.g. `0`; empty is unset.
    pub mems: Option<String>,
    /// 1: all tasks get SCHED_IDLE's weight; 0: not.
    pub idle: Option<i64>,
}

/// `linux.resources.memory`. All sizes are bytes, -1 is no limit and 0 is unset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Hard limit.
    pub limit: Option<i64>,
    /// Soft limit.
    pub reservation: Option<i64>,
    /// Hard limit of memory and swap together (version 1's meaning).
    pub swap: Option<i64>,
    /// Kernel memory. Ignored as by runc: the kernel took the limit away in 5.16.
    pub kernel: Option<i64>,
    /// Kernel memory of TCP buffers. Ignored as by runc.
    pub kernel_tcp: Option<i64>,
    /// 0..=100; version 1 only (version 2 has no such file and runc ignores it there).
    pub swappiness: Option<u64>,
    /// Version 1 only: tasks wait instead of being killed.
    pub disable_oom_killer: bool,
    /// Refuse a limit that is below what is in use now. Version 2 only: version 1 does it itself.
    pub check_before_update: bool,
}

/// `linux.resources.pids`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// Number of tasks; negative is no limit. 0 is written as 1, as runc 1.5 does: systemd knows
    /// no 0, and in a container that has one task already the two are the same.
    pub limit: Option<i64>,
}

/// `linux.resources.blockIO`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIo {
    /// Relative weight, 10..=1000; 0 is unset.
    pub weight: Option<u16>,
    /// Weight of the cgroup's own tasks against its children; 0 is unset. Only CFQ (kernel < 5.0).
    pub leaf_weight: Option<u16>,
    /// Weights by device.
    pub weight_device: Vec<WeightDevice>,
    /// Bytes a second read.
    pub throttle_read_bps: Vec<ThrottleDevice>,
    /// Bytes a second written.
    pub throttle_write_bps: Vec<ThrottleDevice>,
    /// Reads a second.
    pub throttle_read_iops: Vec<ThrottleDevice>,
    /// Writes a second.
    pub throttle_write_iops: Vec<ThrottleDevice>,
}

/// The weight of one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Relative weight, 10..=1000; 0 is unset.
    pub weight: Option<u16>,
    /// As [`BlockIo::leaf_weight`].
    pub leaf_weight: Option<u16>,
}

/// The rate of one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes or operations a second; 0 is no limit.
    pub rate: u64,
}

/// A limit on huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// Size in the kernel's spelling, e.g. `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// `linux.resources.network`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Class of packets for tc; 0 is unset.
    pub class_id: Option<u32>,
    /// Priorities by interface.
    pub priorities: Vec<InterfacePriority>,
}

/// The priority of packets that leave by one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePriority {
    /// Interface in the network namespace of the caller.
    pub name: String,
    /// Priority.
    pub priority: u32,
}

/// `linux.resources.rdma`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaLimit {
    /// Number of handles.
    pub hca_handles: Option<u32>,
    /// Number of objects.
    pub hca_objects: Option<u32>,
}

/// One of `linux.resources.devices`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Which kind. [`DeviceKind::All`] means every device with every access, whatever the other
    /// fields say: so the kernel reads it.
    pub kind: DeviceKind,
    /// Major number; none is any.
    pub major: Option<u32>,
    /// Minor number; none is any.
    pub minor: Option<u32>,
    /// What for.
    pub access: Access,
}

/// What a device rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Let it pass.
    Allow,
    /// Answer EPERM.
    Deny,
}

/// Kinds of devices in rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DeviceKind {
    /// `a`.
    All,
    /// `b`.
    Block,
    /// `c` (and `u`, which the kernel treats alike).
    Char,
}

/// A set of `r`, `w` and `m`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Access(u8);

impl Access {
    /// Make nodes.
    pub const MKNOD: Self = Self(1);
    /// Read.
    pub const READ: Self = Self(2);
    /// Write.
    pub const WRITE: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    /// From the specification's letters, e.g. `rwm`; none for any other letter.
    #[must_use]
    pub fn parse(letters: &str) -> Option<Self> {
        let mut access = Self(0);
        for letter in letters.chars() {
            access.0 |= match letter {
                'r' => Self::READ.0,
                'w' => Self::WRITE.0,
                'm' => Self::MKNOD.0,
                _ => return None,
            };
        }
        Some(access)
    }

    /// The bits of the kernel's BPF_DEVCG_ACC_*: 1 mknod, 2 read, 4 write.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Neither of the three.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in `self` alone.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl std::fmt::Display for Access {
    /// The letters in the kernel's order.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (bit, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MKNOD, 'm')] {
            if !self.intersection(bit).is_empty() {
                write!(out, "{letter}")?;
            }
        }
        Ok(())
    }
}

impl Resources {
    /// Names of fields that are asked for and that no kernel of today can honour, for a warning
    /// (runc does the same).
    #[must_use]
    pub fn ignored(&self) -> Vec<&'static str> {
        let asked = |value: Option<i64>| value.is_some_and(|bytes| bytes != 0);
        let mut names = Vec::new();
        if asked(self.memory.kernel) {
            names.push("linux.resources.memory.kernel");
        }
        if asked(self.memory.kernel_tcp) {
            names.push("linux.resources.memory.kernelTCP");
        }
        names
    }

    /// Names of fields that are asked for and that version 2 does not have, for a warning there
    /// (runc leaves them out, too). What would change who gets what is an error instead.
    #[must_use]
    pub fn ignored_by_version_2(&self) -> Vec<&'static str> {
        let leaf = |weight: Option<u16>| weight.is_some_and(|weight| weight != 0);
        let io = &self.block_io;
        let leaf = leaf(io.leaf_weight) || io.weight_device.iter().any(|one| leaf(one.leaf_weight));
        [
            (
                self.memory.swappiness.is_some(),
                "linux.resources.memory.swappiness",
            ),
            (
                self.memory.disable_oom_killer,
                "linux.resources.memory.disableOOMKiller",
            ),
            (leaf, "linux.resources.blockIO.leafWeight"),
        ]
        .into_iter()
        .filter_map(|(asked, name)| asked.then_some(name))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_letters_make_the_bits_of_the_kernel() {
        for (letters, bits, shown) in [
            ("rwm", 7, "rwm"),
            ("m", 1, "m"),
            ("wr", 6, "rw"),
            ("", 0, ""),
            ("mmm", 1, "m"),
        ] {
            let access = Access::parse(letters).expect(letters);
            assert_eq!((access.bits(), access.to_string().as_str()), (bits, shown));
        }
        assert_eq!(Access::parse("x"), None);
    }

    #[test]
    fn kernel_memory_is_named_as_ignored_only_when_asked_for() {
        let mut resources = Resources::default();
        assert!(resources.ignored().is_empty());
        resources.memory.kernel = Some(0);
        assert!(resources.ignored().is_empty());
        resources.memory.kernel = Some(4096);
        assert_eq!(resources.ignored(), ["linux.resources.memory.kernel"]);
    }

    #[test]
    fn what_version_2_lacks_is_named_when_asked_for() {
        let mut resources = Resources::default();
        assert!(resources.ignored_by_version_2().is_empty());
        resources.memory.swappiness = Some(0);
        resources.block_io.leaf_weight = Some(0);
        let names = resources.ignored_by_version_2();
        assert_eq!(names, ["linux.resources.memory.swappiness"]);
    }
}
