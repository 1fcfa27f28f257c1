//! cpu of version 2: weight, bandwidth, and time used.

use std::path::Path;

use nix::errno::Errno;

use super::pressure;
use crate::convert::weight_of_shares;
use crate::resources::Cpu;
use crate::stats::CpuV2;
use crate::v1::cpu::end_idling;
use crate::{Error, Result, file};

/// The kernel's default of cpu.max (cgroup-v2.rst).
const PERIOD_DEFAULT_US: u64 = 100_000;

/// Writes what is set. Real-time budgets do not exist here: asked for, they are refused.
pub(crate) fn apply(dir: &Path, cpu: &Cpu) -> Result<()> {
    if cpu.realtime_runtime_us.is_some_and(|value| value != 0)
        || cpu.realtime_period_us.is_some_and(|value| value != 0)
    {
        return Err(Error::Invalid {
            field: "linux.resources.cpu.realtimeRuntime",
            why: "cgroup v2 has no real-time limits".to_owned(),
        });
    }
    if let Some(idle) = cpu.idle {
        file::write_number(dir, "cpu.idle", idle)?;
    }
    if let Some(weight) = weight_of_shares(cpu.shares.unwrap_or(0)) {
        end_idling(dir, cpu)?;
        file::write_number(dir, "cpu.weight", weight)?;
    }
    apply_bandwidth(dir, cpu)
}

/// A burst that does not fit the old quota is written again after the new one.
fn apply_bandwidth(dir: &Path, cpu: &Cpu) -> Result<()> {
    let quota = cpu.quota_us.filter(|quota| *quota != 0);
    let period = cpu.period_us.filter(|period| *period != 0);
    let mut burst_again = None;
    if let Some(burst) = cpu.burst_us {
        match file::write_number(dir, "cpu.max.burst", burst) {
            Err(error) if burst == 0 && error.is_not_found() => {}
            Err(error) if quota.is_some() && file::is(&error, Errno::EINVAL) => {
                burst_again = Some(burst);
            }
            written => written?,
        }
    }
    if quota.is_some() || period.is_some() {
        // What is not asked for stays.
        let now = file::read_if_there(dir, "cpu.max")?.unwrap_or_default();
        let mut now = now.split_whitespace();
        let (quota_now, period_now) = (now.next(), now.next());
        let quota = match quota {
            Some(quota @ 1..) => quota.to_string(),
            Some(_) => "max".to_owned(),
            None => quota_now.unwrap_or("max").to_owned(),
        };
        let period_now = period_now.and_then(|period| period.parse().ok());
        let period = period.or(period_now).unwrap_or(PERIOD_DEFAULT_US);
        file::write(dir, "cpu.max", &format!("{quota} {period}"))?;
    }
    match burst_again {
        Some(burst) => file::write_number(dir, "cpu.max.burst", burst),
        None => Ok(()),
    }
}

/// cpu.stat and cpu.pressure; the first is there without the controller, too.
pub(crate) fn read(dir: &Path) -> Result<CpuV2> {
    let text = file::read(dir, "cpu.stat")?;
    let value = |key: &str| file::value_of(&text, key).unwrap_or(0);
    Ok(CpuV2 {
        usage_us: value("usage_usec"),
        user_us: value("user_usec"),
        system_us: value("system_usec"),
        periods: value("nr_periods"),
        throttled: value("nr_throttled"),
        throttled_us: value("throttled_usec"),
        bursts: value("nr_bursts"),
        burst_us: value("burst_usec"),
        psi: pressure::read(dir, "cpu.pressure")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    const FILES: [(&str, &str); 4] = [
        ("cpu.weight", ""),
        ("cpu.max", ""),
        ("cpu.max.burst", ""),
        ("cpu.idle", ""),
    ];

    /// What each file of [`FILES`] was told.
    fn check(cpu: &Cpu, expected: [&str; 4]) {
        let dir = directory(&FILES);
        apply(dir.path(), cpu).unwrap();
        let told = FILES.map(|(name, _)| written(dir.path(), name).join(" "));
        assert_eq!(told, expected, "{cpu:?}");
    }

    #[test]
    fn values_of_version_1_become_those_of_version_2() {
        check(&Cpu::default(), ["", "", "", ""]);
        check(
            &Cpu {
                shares: Some(1024),
                ..Cpu::default()
            },
            ["100", "", "", ""],
        );
        check(
            &Cpu {
                quota_us: Some(50_000),
                ..Cpu::default()
            },
            ["", "50000 100000", "", ""],
        );
        check(
            &Cpu {
                quota_us: Some(-1),
                ..Cpu::default()
            },
            ["", "max 100000", "", ""],
        );
        check(
            &Cpu {
                period_us: Some(5_000),
                ..Cpu::default()
            },
            ["", "max 5000", "", ""],
        );
        let all = Cpu {
            quota_us: Some(1),
            period_us: Some(2),
            burst_us: Some(3),
            idle: Some(1),
            ..Cpu::default()
        };
        check(&all, ["", "1 2", "3", "1"]);
    }

    #[test]
    fn of_a_quota_and_its_period_the_one_that_is_not_asked_for_stays() {
        for (quota_us, period_us, expected) in [
            (None, Some(20_000), "30000 20000"),
            (Some(10_000), None, "10000 50000"),
            (Some(-1), None, "max 50000"),
        ] {
            let dir = directory(&[("cpu.max", "30000 50000\n")]);
            let cpu = Cpu {
                quota_us,
                period_us,
                ..Cpu::default()
            };
            apply(dir.path(), &cpu).unwrap();
            let last = written(dir.path(), "cpu.max").pop();
            assert_eq!(last.as_deref(), Some(expected));
        }
    }

    #[test]
    fn weights_end_what_is_idle_unless_idle_is_asked_for() {
        for (idle, expected) in [(None, "1 0"), (Some(0), "1 0"), (Some(1), "1 1")] {
            let dir = directory(&[("cpu.idle", "1\n"), ("cpu.weight", "")]);
            let cpu = Cpu {
                shares: Some(1024),
                idle,
                ..Cpu::default()
            };
            apply(dir.path(), &cpu).unwrap();
            let told = ["cpu.idle", "cpu.weight"].map(|name| written(dir.path(), name).join(" "));
            assert_eq!(told, [expected, "100"], "{idle:?}");
        }
    }

    #[test]
    fn real_time_budget_is_refused() {
        let cpu = Cpu {
            realtime_runtime_us: Some(5),
            ..Cpu::default()
        };
        assert!(matches!(
            apply(directory(&[]).path(), &cpu),
            Err(Error::Invalid { .. })
        ));
        let unset = Cpu {
            realtime_runtime_us: Some(0),
            ..Cpu::default()
        };
        apply(directory(&[]).path(), &unset).unwrap();
    }

    #[test]
    fn time_is_read_with_or_without_the_controller() {
        let short = "usage_usec 9\nuser_usec 5\nsystem_usec 4\n";
        let more = "nr_periods 1\nnr_throttled 2\nthrottled_usec 3\nnr_bursts 6\nburst_usec 7\n";
        let expected = CpuV2 {
            usage_us: 9,
            user_us: 5,
            system_us: 4,
            ..CpuV2::default()
        };
        assert_eq!(
            read(directory(&[("cpu.stat", short)]).path()).unwrap(),
            expected
        );
        let full = read(directory(&[("cpu.stat", &format!("{short}{more}"))]).path()).unwrap();
        assert_eq!((full.periods, full.throttled, full.throttled_us), (1, 2, 3));
        assert_eq!((full.bursts, full.burst_us), (6, 7));
    }
}
