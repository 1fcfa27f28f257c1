//! cpu and cpuacct of version 1: shares, quota, real-time budget, and time used.

use std::path::Path;

use nix::errno::Errno;

use crate::resources::Cpu;
use crate::stats::CpuV1;
use crate::{Error, Result, file};

/// Nanoseconds of a clock tick: USER_HZ is 100 on every architecture Linux has today.
const TICK_NS: u64 = 10_000_000;

/// What is asked of the controller, by its name in config.json.
pub(crate) fn asked(cpu: &Cpu) -> Option<&'static str> {
    let set = |value: Option<u64>| value.is_some_and(|value| value != 0);
    let set_signed = |value: Option<i64>| value.is_some_and(|value| value != 0);
    [
        (set(cpu.shares), "linux.resources.cpu.shares"),
        (set(cpu.period_us), "linux.resources.cpu.period"),
        (set_signed(cpu.quota_us), "linux.resources.cpu.quota"),
        (cpu.burst_us.is_some(), "linux.resources.cpu.burst"),
        (cpu.idle.is_some(), "linux.resources.cpu.idle"),
        (
            set_signed(cpu.realtime_runtime_us),
            "linux.resources.cpu.realtimeRuntime",
        ),
        (
            set(cpu.realtime_period_us),
            "linux.resources.cpu.realtimePeriod",
        ),
    ]
    .into_iter()
    .find_map(|(asked, field)| asked.then_some(field))
}

/// Writes what is set.
pub(crate) fn apply(dir: &Path, cpu: &Cpu) -> Result<()> {
    // Shares of an idle cgroup cannot be set; an idle one first stops being idle.
    if cpu.idle == Some(0) {
        file::write(dir, "cpu.idle", "0")?;
    }
    apply_shares(dir, cpu)?;
    apply_bandwidth(dir, cpu)?;
    if let Some(idle) = cpu.idle.filter(|idle| *idle != 0) {
        file::write_number(dir, "cpu.idle", idle)?;
    }
    apply_realtime(dir, cpu)
}

/// The kernel moves a value that is too small or too large without a word: refused as by runc.
fn apply_shares(dir: &Path, cpu: &Cpu) -> Result<()> {
    let refused = |why: &str| {
        let why = why.to_owned();
        Err(Error::Invalid {
            field: "linux.resources.cpu.shares",
            why,
        })
    };
    match cpu.shares.unwrap_or(0) {
        0 => Ok(()),
        1 => refused("the minimum allowed cpu-shares is 2"),
        shares @ 2..=262_144 => {
            end_idling(dir, cpu)?;
            file::write_number(dir, "cpu.shares", shares)
        }
        _ => refused("the maximum allowed cpu-shares is 262144"),
    }
}

/// Who sets shares and says nothing of idle wants them to count. The kernel refuses them (EINVAL,
/// Linux 5.15) while the cgroup is idle, which it may be by a priority alone
/// ([`crate::Cgroup::prioritise`]).
pub(crate) fn end_idling(dir: &Path, cpu: &Cpu) -> Result<()> {
    let is_idle = || {
        let text = file::read_if_there(dir, "cpu.idle")?;
        Ok(text.is_some_and(|text| text.trim() == "1"))
    };
    if cpu.idle.is_none() && is_idle()? {
        file::write(dir, "cpu.idle", "0")?;
    }
    Ok(())
}

/// Quota, period and burst limit each other, and the parent limits them: a period or a burst that
/// does not fit the old quota is written again after the new one.
fn apply_bandwidth(dir: &Path, cpu: &Cpu) -> Result<()> {
    let quota = cpu.quota_us.filter(|quota| *quota != 0);
    let again_later = |written: Result<()>| match written {
        Err(error) if quota.is_some() && file::is(&error, Errno::EINVAL) => Ok(true),
        other => other.map(|()| false),
    };
    let period = cpu.period_us.filter(|period| *period != 0);
    let mut period_again = false;
    if let Some(period) = period {
        period_again = again_later(file::write_number(dir, "cpu.cfs_period_us", period))?;
    }
    let mut burst_again = false;
    if let Some(burst) = cpu.burst_us {
        burst_again = match file::write_number(dir, "cpu.cfs_burst_us", burst) {
            // Before Linux 5.14 there is no burst, which is what 0 asks for.
            Err(error) if burst == 0 && error.is_not_found() => false,
            written => again_later(written)?,
        };
    }
    let Some(quota) = quota else { return Ok(()) };
    file::write_number(dir, "cpu.cfs_quota_us", quota)?;
    if let Some(period) = period.filter(|_| period_again) {
        file::write_number(dir, "cpu.cfs_period_us", period)?;
    }
    if let Some(burst) = cpu.burst_us.filter(|_| burst_again) {
        file::write_number(dir, "cpu.cfs_burst_us", burst)?;
    }
    Ok(())
}

/// Left alone when unset: a new cgroup has no real-time budget, and giving it one is a decision
/// about the whole machine.
fn apply_realtime(dir: &Path, cpu: &Cpu) -> Result<()> {
    let runtime = cpu.realtime_runtime_us.filter(|runtime| *runtime != 0);
    let period = cpu.realtime_period_us.filter(|period| *period != 0);
    let mut period_again = false;
    if let Some(period) = period {
        match file::write_number(dir, "cpu.rt_period_us", period) {
            Err(error) if runtime.is_some() && file::is(&error, Errno::EINVAL) => {
                period_again = true;
            }
            written => written?,
        }
    }
    let Some(runtime) = runtime else {
        return Ok(());
    };
    file::write_number(dir, "cpu.rt_runtime_us", runtime)?;
    match period.filter(|_| period_again) {
        Some(period) => file::write_number(dir, "cpu.rt_period_us", period),
        None => Ok(()),
    }
}

/// cpu.stat: how often and how long the quota held tasks back.
pub(crate) fn read_throttling(dir: &Path, cpu: &mut CpuV1) -> Result<()> {
    let Some(text) = file::read_if_there(dir, "cpu.stat")? else {
        return Ok(());
    };
    cpu.periods = file::value_of(&text, "nr_periods").unwrap_or(0);
    cpu.throttled_periods = file::value_of(&text, "nr_throttled").unwrap_or(0);
    cpu.throttled_ns = file::value_of(&text, "throttled_time").unwrap_or(0);
    Ok(())
}

/// cpuacct: time used.
pub(crate) fn read_time(dir: &Path, cpu: &mut CpuV1) -> Result<()> {
    cpu.total_ns = file::read_number(dir, "cpuacct.usage")?;
    let stat = file::read(dir, "cpuacct.stat")?;
    cpu.user_ns = file::value_of(&stat, "user")
        .unwrap_or(0)
        .saturating_mul(TICK_NS);
    cpu.kernel_ns = file::value_of(&stat, "system")
        .unwrap_or(0)
        .saturating_mul(TICK_NS);
    let per_cpu = file::read_if_there(dir, "cpuacct.usage_percpu")?.unwrap_or_default();
    cpu.per_cpu_ns = per_cpu
        .split_whitespace()
        .filter_map(file::number)
        .collect();
    let all = file::read_if_there(dir, "cpuacct.usage_all")?.unwrap_or_default();
    for line in all.lines().skip(1) {
        let mut words = line.split(' ').skip(1).filter_map(file::number);
        if let (Some(user), Some(kernel)) = (words.next(), words.next()) {
            cpu.per_cpu_user_ns.push(user);
            cpu.per_cpu_kernel_ns.push(kernel);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    const FILES: [(&str, &str); 7] = [
        ("cpu.shares", ""),
        ("cpu.cfs_period_us", ""),
        ("cpu.cfs_quota_us", ""),
        ("cpu.cfs_burst_us", ""),
        ("cpu.idle", ""),
        ("cpu.rt_period_us", ""),
        ("cpu.rt_runtime_us", ""),
    ];

    /// What each file of [`FILES`] was told.
    fn check(cpu: &Cpu, expected: [&str; 7]) {
        let dir = directory(&FILES);
        apply(dir.path(), cpu).unwrap();
        let told = FILES.map(|(name, _)| written(dir.path(), name).join(" "));
        assert_eq!(told, expected, "{cpu:?}");
    }

    #[test]
    fn each_value_goes_to_its_file_and_unset_ones_nowhere() {
        check(&Cpu::default(), ["", "", "", "", "", "", ""]);
        let zeros = Cpu {
            shares: Some(0),
            quota_us: Some(0),
            period_us: Some(0),
            realtime_runtime_us: Some(0),
            realtime_period_us: Some(0),
            ..Cpu::default()
        };
        check(&zeros, ["", "", "", "", "", "", ""]);
        let all = Cpu {
            shares: Some(512),
            quota_us: Some(50_000),
            period_us: Some(100_000),
            burst_us: Some(1_000),
            realtime_runtime_us: Some(900),
            realtime_period_us: Some(1_000_000),
            idle: Some(1),
            ..Cpu::default()
        };
        check(
            &all,
            ["512", "100000", "50000", "1000", "1", "1000000", "900"],
        );
        let unlimited = Cpu {
            quota_us: Some(-1),
            ..Cpu::default()
        };
        check(&unlimited, ["", "", "-1", "", "", "", ""]);
    }

    #[test]
    fn shares_the_kernel_would_move_are_refused() {
        let dir = directory(&FILES);
        for shares in [1, 262_145] {
            let cpu = Cpu {
                shares: Some(shares),
                ..Cpu::default()
            };
            assert!(
                matches!(apply(dir.path(), &cpu), Err(Error::Invalid { .. })),
                "{shares}"
            );
        }
    }

    #[test]
    fn shares_end_what_is_idle_unless_idle_is_asked_for() {
        for (idle, expected) in [(None, "1 0"), (Some(0), "1 0"), (Some(1), "1 1")] {
            let dir = directory(&[("cpu.idle", "1\n"), ("cpu.shares", "")]);
            let cpu = Cpu {
                shares: Some(512),
                idle,
                ..Cpu::default()
            };
            apply(dir.path(), &cpu).unwrap();
            let told = ["cpu.idle", "cpu.shares"].map(|name| written(dir.path(), name).join(" "));
            assert_eq!(told, [expected, "512"], "{idle:?}");
        }
    }

    #[test]
    fn missing_burst_file_is_an_error_unless_no_burst_is_asked_for() {
        let dir = directory(&[]);
        apply(
            dir.path(),
            &Cpu {
                burst_us: Some(0),
                ..Cpu::default()
            },
        )
        .unwrap();
        let error = apply(
            dir.path(),
            &Cpu {
                burst_us: Some(5),
                ..Cpu::default()
            },
        )
        .unwrap_err();
        assert!(error.is_not_found());
    }

    #[test]
    fn first_field_asked_for_is_named() {
        assert_eq!(
            asked(&Cpu {
                shares: Some(0),
                ..Cpu::default()
            }),
            None
        );
        let cpu = Cpu {
            quota_us: Some(-1),
            ..Cpu::default()
        };
        assert_eq!(asked(&cpu), Some("linux.resources.cpu.quota"));
    }

    #[test]
    fn time_and_throttling_are_read() {
        let dir = directory(&[
            (
                "cpu.stat",
                "nr_periods 5\nnr_throttled 2\nthrottled_time 77\nnr_bursts 0\n",
            ),
            ("cpuacct.usage", "123456\n"),
            ("cpuacct.stat", "user 3\nsystem 4\n"),
            ("cpuacct.usage_percpu", "100 200 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 60 40\n1 150 50\n"),
        ]);
        let mut cpu = CpuV1::default();
        read_throttling(dir.path(), &mut cpu).unwrap();
        read_time(dir.path(), &mut cpu).unwrap();
        let expected = CpuV1 {
            total_ns: 123_456,
            kernel_ns: 40_000_000,
            user_ns: 30_000_000,
            per_cpu_ns: vec![100, 200],
            per_cpu_kernel_ns: vec![40, 50],
            per_cpu_user_ns: vec![60, 150],
            periods: 5,
            throttled_periods: 2,
            throttled_ns: 77,
        };
        assert_eq!(cpu, expected);
    }
}
