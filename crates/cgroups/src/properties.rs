//! Limits as properties of a unit of systemd, so that it keeps them when it writes a unit's cgroup
//! anew. Pure; the words are runc's docs/systemd.md's.
//!
//! Not all limits have such a word. They are all written into the cgroup, too, so none is missing.

use std::collections::BTreeMap;

use crate::convert::{io_weight, swap_alone, weight_of_shares};
use crate::devices::{DeviceList, DeviceSet};
use crate::hierarchies::Layout;
use crate::resources::{Access, Cpu, DeviceKind, DeviceRule, Memory, Resources, Verdict};
use crate::{Error, Result};

/// Oldest systemd that takes a quota's period.
const WITH_PERIODS: u32 = 242;
/// Oldest systemd that has the controller cpuset.
const WITH_CPUSETS: u32 = 244;
/// Oldest systemd that takes a weight of 0 for `cpu.idle`.
const WITH_IDLE: u32 = 252;
/// Oldest systemd that takes devices by number.
const WITH_DEVICE_NUMBERS: u32 = 240;

/// No limit.
const INFINITY: u64 = u64::MAX;

/// The kernel's period of a quota, microseconds.
const PERIOD_DEFAULT_US: u64 = 100_000;

/// systemd keeps a quota as a percentage of one processor: in so many microseconds a second.
const QUOTA_STEP_US: u64 = 10_000;

/// Highest number of a processor or a memory node that is taken.
const NUMBER_MAX: usize = 1 << 16;

/// A value of a property, by its type in D-Bus.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `b`
    Boolean(bool),
    /// `y`
    Byte(u8),
    /// `n`
    Int16(i16),
    /// `q`
    Uint16(u16),
    /// `i`
    Int32(i32),
    /// `u`
    Uint32(u32),
    /// `x`
    Int64(i64),
    /// `t`
    Uint64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
    /// `as`
    Texts(Vec<String>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

/// A property and its value.
pub type Property = (String, Value);

/// The properties for what is set of `resources`. Without device rules the unit's stay as they are.
///
/// # Errors
/// [`Error::Invalid`] for what has no meaning, as when it is written into the cgroup.
pub fn of(resources: &Resources, layout: Layout, systemd: u32) -> Result<Vec<Property>> {
    let mut list = List {
        properties: devices(&resources.devices, systemd)?,
        systemd,
    };
    match layout {
        Layout::V2 => list.unified(resources)?,
        Layout::V1 | Layout::Hybrid => list.legacy(resources),
    }
    list.quota(&resources.cpu);
    if let Some(limit) = resources.pids.limit {
        // It takes no 0.
        list.number(
            "TasksMax",
            u64::try_from(limit).map_or(INFINITY, |it| it.max(1)),
        );
    }
    let cpu = &resources.cpu;
    list.cpuset(
        "AllowedCPUs",
        "linux.resources.cpu.cpus",
        cpu.cpus.as_deref(),
    )?;
    list.cpuset(
        "AllowedMemoryNodes",
        "linux.resources.cpu.mems",
        cpu.mems.as_deref(),
    )?;
    if layout == Layout::V2 {
        list.files(&resources.unified)?;
    }
    Ok(list.properties)
}

struct List {
    properties: Vec<Property>,
    systemd: u32,
}

impl List {
    /// The later of two of a name counts.
    fn set(&mut self, name: &str, value: Value) {
        self.properties.retain(|(known, _)| known != name);
        self.properties.push((name.to_owned(), value));
    }

    fn number(&mut self, name: &str, number: u64) {
        self.set(name, Value::Uint64(number));
    }

    fn legacy(&mut self, resources: &Resources) {
        if let Some(limit) = bytes(resources.memory.limit) {
            self.number("MemoryLimit", limit);
        }
        if let Some(shares) = resources.cpu.shares.filter(|shares| *shares != 0) {
            self.number("CPUShares", shares);
        }
        if let Some(weight) = resources.block_io.weight.filter(|weight| *weight != 0) {
            self.number("BlockIOWeight", weight.into());
        }
    }

    fn unified(&mut self, resources: &Resources) -> Result<()> {
        let Memory {
            limit,
            reservation,
            swap,
            ..
        } = resources.memory;
        if let Some(limit) = bytes(limit) {
            self.number("MemoryMax", limit);
        }
        if let Some(reservation) = bytes(reservation) {
            self.number("MemoryLow", reservation);
        }
        if let Some(swap) = swap_alone(swap.unwrap_or(0), limit.unwrap_or(0))? {
            self.number("MemorySwapMax", u64::try_from(swap).unwrap_or(INFINITY));
        }
        if let Some(weight) = weight_of_shares(resources.cpu.shares.unwrap_or(0)) {
            self.number("CPUWeight", weight);
        }
        if resources.cpu.idle == Some(1) {
            self.idle();
        }
        if let Some(weight) = resources.block_io.weight.and_then(io_weight) {
            self.number("IOWeight", weight);
        }
        Ok(())
    }

    fn idle(&mut self) {
        if self.systemd >= WITH_IDLE {
            self.number("CPUWeight", 0);
        }
    }

    fn quota(&mut self, cpu: &Cpu) {
        let quota = cpu.quota_us.filter(|quota| *quota != 0);
        let period = cpu.period_us.filter(|period| *period != 0);
        if let Some(period) = period.filter(|_| self.systemd >= WITH_PERIODS) {
            self.number("CPUQuotaPeriodUSec", period);
        }
        if quota.is_some() || period.is_some() {
            let quota = quota.and_then(|quota| u64::try_from(quota).ok());
            let a_second = quota.map_or(INFINITY, |quota| {
                per_second(quota, period.unwrap_or(PERIOD_DEFAULT_US))
            });
            self.number("CPUQuotaPerSecUSec", a_second);
        }
    }

    fn cpuset(&mut self, name: &str, field: &'static str, text: Option<&str>) -> Result<()> {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            return Ok(());
        };
        let mask = mask(text).ok_or_else(|| Error::Invalid {
            field,
            why: format!("{text:?} is no list of numbers and ranges"),
        })?;
        if self.systemd >= WITH_CPUSETS {
            self.set(name, Value::Bytes(mask));
        }
        Ok(())
    }

    /// What is said by a file's name, which counts more than the words of config.json.
    fn files(&mut self, files: &BTreeMap<String, String>) -> Result<()> {
        for (name, value) in files {
            let value = value.trim();
            match name.as_str() {
                "cpu.max" => self.cpu_max(value)?,
                "cpu.weight" => self.file("CPUWeight", name, value)?,
                "cpuset.cpus" => self.cpuset("AllowedCPUs", UNIFIED, Some(value))?,
                "cpuset.mems" => self.cpuset("AllowedMemoryNodes", UNIFIED, Some(value))?,
                "memory.high" => self.file("MemoryHigh", name, value)?,
                "memory.low" => self.file("MemoryLow", name, value)?,
                "memory.max" => self.file("MemoryMax", name, value)?,
                "memory.min" => self.file("MemoryMin", name, value)?,
                "memory.swap.max" => self.file("MemorySwapMax", name, value)?,
                "pids.max" => {
                    let value = if value == "0" { "1" } else { value };
                    self.file("TasksMax", name, value)?;
                }
                _ => {}
            }
        }
        if files.get("cpu.idle").is_some_and(|idle| idle.trim() == "1") {
            self.idle();
        }
        Ok(())
    }

    fn file(&mut self, property: &str, file: &str, value: &str) -> Result<()> {
        self.number(property, number(file, value)?.unwrap_or(INFINITY));
        Ok(())
    }

    /// `QUOTA [PERIOD]`
    fn cpu_max(&mut self, value: &str) -> Result<()> {
        let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
        let [quota, period] = [quota, period.trim()].map(|word| number("cpu.max", word));
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.quota(&Cpu {
            quota_us: quota?.map_or(Some(-1), |quota| Some(signed(quota))),
            period_us: period?,
            ..Cpu::default()
        });
        Ok(())
    }
}

const UNIFIED: &str = "linux.resources.unified";

/// A number of a file of version 2; none: `max`.
fn number(file: &str, value: &str) -> Result<Option<u64>> {
    if value == "max" {
        return Ok(None);
    }
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_no_number) => Err(Error::Invalid {
            field: UNIFIED,
            why: format!("{file}: {value:?} is neither a number nor max"),
        }),
    }
}

/// -1 is no limit, 0 is unset.
fn bytes(limit: Option<i64>) -> Option<u64> {
    let limit = limit.filter(|limit| *limit != 0)?;
    Some(u64::try_from(limit).unwrap_or(INFINITY))
}

/// Microseconds a second, no less than is asked for in systemd's steps.
fn per_second(quota_us: u64, period_us: u64) -> u64 {
    let exact = u128::from(quota_us) * 1_000_000 / u128::from(period_us.max(1));
    let exact = u64::try_from(exact).unwrap_or(INFINITY - QUOTA_STEP_US);
    exact.div_ceil(QUOTA_STEP_US).saturating_mul(QUOTA_STEP_US)
}

/// A bit for each number of `0-3,7`, the lowest first.
fn mask(text: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for range in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let [first, last] = [first, last].map(|word| word.trim().parse::<usize>().ok());
        let (first, last) = (first?, last?);
        if first > last || last > NUMBER_MAX {
            return None;
        }
        for number in first..=last {
            if mask.len() <= number / 8 {
                mask.resize(number / 8 + 1, 0);
            }
            mask[number / 8] |= 1 << (number % 8);
        }
    }
    Some(mask).filter(|mask| !mask.is_empty())
}

/// systemd knows lists of what is allowed only. What it cannot say is allowed by the cgroup's own rules, until
/// it writes that anew.
fn devices(rules: &[DeviceRule], systemd: u32) -> Result<Vec<Property>> {
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    let list = DeviceList::from_rules(rules)?;
    let policy = match list.default {
        Verdict::Allow => "auto",
        Verdict::Deny => "strict",
    };
    let allowed = match list.default {
        // Denying some is what systemd has no word for: the cgroup's own rules do.
        Verdict::Allow => Vec::new(),
        Verdict::Deny => list
            .exceptions
            .iter()
            .filter_map(|(set, access)| device(*set, *access, systemd))
            .collect(),
    };
    Ok(vec![
        // The first one empties what there is.
        ("DeviceAllow".to_owned(), Value::Pairs(Vec::new())),
        ("DevicePolicy".to_owned(), Value::Text(policy.to_owned())),
        ("DeviceAllow".to_owned(), Value::Pairs(allowed)),
    ])
}

fn device(set: DeviceSet, access: Access, systemd: u32) -> Option<(String, String)> {
    let kind = match set.kind {
        DeviceKind::Block => "block",
        DeviceKind::Char | DeviceKind::All => "char",
    };
    let by_number = systemd >= WITH_DEVICE_NUMBERS;
    let name = match (set.major, set.minor) {
        (None, None) => format!("{kind}-*"),
        (Some(major), None) if by_number => format!("{kind}-{major}"),
        (Some(major), Some(minor)) => {
            let path = format!("/dev/{kind}/{major}:{minor}");
            // Before, it looked at the node, and there must be one.
            if !by_number && !std::path::Path::new(&path).exists() {
                return None;
            }
            path
        }
        (Some(_), None) | (None, Some(_)) => return None,
    };
    Some((name, access.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(resources: &Resources, layout: Layout, systemd: u32) -> Vec<String> {
        let properties = of(resources, layout, systemd).unwrap();
        let line = |(name, value): &Property| format!("{name} {value:?}");
        properties.iter().map(line).collect()
    }

    fn limited() -> Resources {
        let mut resources = Resources::default();
        resources.memory.limit = Some(64 << 20);
        resources.memory.reservation = Some(32 << 20);
        resources.memory.swap = Some(96 << 20);
        resources.cpu.shares = Some(1024);
        resources.cpu.quota_us = Some(12_345);
        resources.cpu.period_us = Some(50_000);
        resources.cpu.cpus = Some("0-2,9".to_owned());
        resources.pids.limit = Some(0);
        resources.block_io.weight = Some(1000);
        resources
    }

    #[test]
    fn limits_have_the_words_of_the_version_of_cgroups() {
        assert_eq!(
            shown(&limited(), Layout::V2, 252),
            [
                "MemoryMax Uint64(67108864)",
                "MemoryLow Uint64(33554432)",
                "MemorySwapMax Uint64(33554432)",
                "CPUWeight Uint64(100)",
                "IOWeight Uint64(10000)",
                "CPUQuotaPeriodUSec Uint64(50000)",
                "CPUQuotaPerSecUSec Uint64(250000)",
                "TasksMax Uint64(1)",
                "AllowedCPUs Bytes([7, 2])",
            ]
        );
        assert_eq!(
            shown(&limited(), Layout::Hybrid, 239),
            [
                "MemoryLimit Uint64(67108864)",
                "CPUShares Uint64(1024)",
                "BlockIOWeight Uint64(1000)",
                "CPUQuotaPerSecUSec Uint64(250000)",
                "TasksMax Uint64(1)",
            ]
        );
        assert!(shown(&Resources::default(), Layout::V2, 252).is_empty());
    }

    #[test]
    fn no_limit_is_infinity_and_zero_is_unset() {
        let mut resources = Resources::default();
        resources.memory.limit = Some(-1);
        resources.cpu.quota_us = Some(-1);
        resources.pids.limit = Some(-1);
        resources.cpu.shares = Some(0);
        let infinity = |name: &str| format!("{name} Uint64({})", u64::MAX);
        assert_eq!(
            shown(&resources, Layout::V2, 252),
            [
                "MemoryMax",
                "MemorySwapMax",
                "CPUQuotaPerSecUSec",
                "TasksMax"
            ]
            .map(infinity)
        );
    }

    #[test]
    fn a_file_by_its_name_counts_more_than_the_words() {
        let mut resources = limited();
        let files = [
            ("memory.max", " max "),
            ("pids.max", "0"),
            ("cpu.max", "max 20000"),
            ("cpu.weight", "7"),
            ("io.max", "8:0 rbps=1"),
            ("cpuset.cpus", "3"),
        ];
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        resources.unified = files.map(own).into();
        let shown = shown(&resources, Layout::V2, 252);
        let infinity = u64::MAX;
        for line in [
            format!("MemoryMax Uint64({infinity})"),
            "TasksMax Uint64(1)".to_owned(),
            format!("CPUQuotaPerSecUSec Uint64({infinity})"),
            "CPUQuotaPeriodUSec Uint64(20000)".to_owned(),
            "CPUWeight Uint64(7)".to_owned(),
            "AllowedCPUs Bytes([8])".to_owned(),
        ] {
            assert_eq!(shown.iter().filter(|it| **it == line).count(), 1, "{line}");
        }
        assert_eq!(shown.len(), 9, "{shown:?}");
    }

    #[test]
    fn idle_is_a_weight_of_0_where_systemd_knows_that() {
        let mut resources = Resources::default();
        resources.cpu.idle = Some(1);
        assert_eq!(shown(&resources, Layout::V2, 252), ["CPUWeight Uint64(0)"]);
        assert!(shown(&resources, Layout::V2, 251).is_empty());
    }

    #[test]
    fn quotas_are_rounded_up_to_what_systemd_keeps() {
        for (quota, period, expected) in [
            (100_000, 100_000, 1_000_000),
            (1, 100_000, 10_000),
            (10_001, 100_000, 110_000),
            (u64::MAX, 1, 18_446_744_073_709_550_000),
        ] {
            assert_eq!(per_second(quota, period), expected, "{quota} {period}");
        }
    }

    #[test]
    fn what_is_no_list_or_no_number_is_refused_by_its_field() {
        let check = |change: fn(&mut Resources), expected: &str| {
            let mut resources = Resources::default();
            change(&mut resources);
            let error = of(&resources, Layout::V2, 252).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            |it| it.cpu.cpus = Some("a".into()),
            "linux.resources.cpu.cpus",
        );
        check(
            |it| it.cpu.mems = Some("3-1".into()),
            "linux.resources.cpu.mems",
        );
        check(|it| it.cpu.cpus = Some("99999999".into()), "is no list");
        check(
            |it| drop(it.unified.insert("memory.max".into(), "1k".into())),
            "memory.max: \"1k\" is neither",
        );
    }

    fn rule(
        verdict: Verdict,
        kind: DeviceKind,
        major: Option<u32>,
        minor: Option<u32>,
    ) -> DeviceRule {
        DeviceRule {
            verdict,
            kind,
            major,
            minor,
            access: Access::ALL,
        }
    }

    #[test]
    fn devices_that_are_allowed_are_named_as_systemd_names_them() {
        let rules = [
            rule(Verdict::Deny, DeviceKind::All, None, None),
            rule(Verdict::Allow, DeviceKind::Char, Some(1), Some(3)),
            rule(Verdict::Allow, DeviceKind::Char, Some(136), None),
            rule(Verdict::Allow, DeviceKind::Block, None, None),
            rule(Verdict::Allow, DeviceKind::Char, None, Some(7)),
        ];
        let pair = |name: &str| (name.to_owned(), "rwm".to_owned());
        let expected = ["block-*", "/dev/char/1:3", "char-136"].map(pair).to_vec();
        let found = devices(&rules, 252).unwrap();
        assert_eq!(found[0].1, Value::Pairs(Vec::new()));
        assert_eq!(found[1].1, Value::Text("strict".to_owned()));
        assert_eq!(found[2].1, Value::Pairs(expected));
        let all = [rule(Verdict::Allow, DeviceKind::All, None, None)];
        assert_eq!(
            devices(&all, 252).unwrap()[1].1,
            Value::Text("auto".to_owned())
        );
        assert!(devices(&[], 252).unwrap().is_empty());
    }
}
