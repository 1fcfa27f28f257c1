//! memory of version 1: limits in the one order the kernel takes them, and numbers.

use std::path::Path;

use nix::errno::Errno;

use crate::resources::Memory;
use crate::stats::{MemoryEntry, MemoryV1, OomControl};
use crate::{Error, Result, file};

const LIMIT: &str = "memory.limit_in_bytes";
const SWAP_LIMIT: &str = "memory.memsw.limit_in_bytes";

/// What is asked of the controller, by its name in config.json.
pub(crate) fn asked(memory: &Memory) -> Option<&'static str> {
    let set = |value: Option<i64>| value.is_some_and(|value| value != 0);
    [
        (set(memory.limit), "linux.resources.memory.limit"),
        (set(memory.swap), "linux.resources.memory.swap"),
        (
            set(memory.reservation),
            "linux.resources.memory.reservation",
        ),
        (
            memory.swappiness.is_some(),
            "linux.resources.memory.swappiness",
        ),
        (
            memory.disable_oom_killer,
            "linux.resources.memory.disableOOMKiller",
        ),
    ]
    .into_iter()
    .find_map(|(asked, field)| asked.then_some(field))
}

/// Writes what is set.
pub(crate) fn apply(dir: &Path, memory: &Memory) -> Result<()> {
    apply_limits(dir, memory)?;
    if let Some(bytes) = memory.reservation.filter(|bytes| *bytes != 0) {
        file::write_number(dir, "memory.soft_limit_in_bytes", bytes)?;
    }
    if memory.disable_oom_killer {
        file::write(dir, "memory.oom_control", "1")?;
    }
    match memory.swappiness {
        Some(percent @ 0..=100) => file::write_number(dir, "memory.swappiness", percent),
        // runc's "keep": -1 in the 64 bits of the specification's unsigned field.
        None | Some(u64::MAX) => Ok(()),
        Some(percent) => Err(Error::Invalid {
            field: "linux.resources.memory.swappiness",
            why: format!("{percent} is not in 0..=100"),
        }),
    }
}

/// The kernel holds `limit <= memsw.limit` at every moment: the one that grows is written first.
fn apply_limits(dir: &Path, memory: &Memory) -> Result<()> {
    let limit = memory.limit.filter(|bytes| *bytes != 0);
    let mut swap = memory.swap.filter(|bytes| *bytes != 0);
    if limit == Some(-1) && swap.is_none() && file::exists(dir, SWAP_LIMIT) {
        swap = Some(-1);
    }
    if let (Some(_), Some(swap)) = (limit, swap) {
        let now = file::read_number(dir, LIMIT)?;
        if swap == -1 || u64::try_from(swap).is_ok_and(|swap| now < swap) {
            file::write_number(dir, SWAP_LIMIT, swap)?;
            return apply_limit(dir, limit);
        }
    }
    apply_limit(dir, limit)?;
    match swap {
        Some(swap) => file::write_number(dir, SWAP_LIMIT, swap),
        None => Ok(()),
    }
}

fn apply_limit(dir: &Path, limit: Option<i64>) -> Result<()> {
    let Some(limit) = limit else { return Ok(()) };
    match file::write_number(dir, LIMIT, limit) {
        Err(error) if file::is(&error, Errno::EBUSY) => {
            let usage = file::read_number(dir, "memory.usage_in_bytes")?;
            let peak = file::read_number(dir, "memory.max_usage_in_bytes")?;
            Err(Error::Invalid {
                field: "linux.resources.memory.limit",
                why: format!(
                    "unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})"
                ),
            })
        }
        written => written,
    }
}

/// Everything the controller counts.
pub(crate) fn read(dir: &Path) -> Result<MemoryV1> {
    let stat = file::read(dir, "memory.stat")?;
    let oom = file::read_if_there(dir, "memory.oom_control")?.unwrap_or_default();
    Ok(MemoryV1 {
        stat: file::pairs(&stat)
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        usage: entry(dir, "memory")?,
        swap: entry(dir, "memory.memsw")?,
        kernel: entry(dir, "memory.kmem")?,
        kernel_tcp: entry(dir, "memory.kmem.tcp")?,
        oom: OomControl {
            oom_kill_disable: file::value_of(&oom, "oom_kill_disable").unwrap_or(0),
            under_oom: file::value_of(&oom, "under_oom").unwrap_or(0),
            oom_kill: file::value_of(&oom, "oom_kill").unwrap_or(0),
        },
    })
}

/// One counter; zeros where the kernel does not have it.
fn entry(dir: &Path, prefix: &str) -> Result<MemoryEntry> {
    let read = |suffix: &str| {
        let number = file::read_number_if_there(dir, &format!("{prefix}.{suffix}"))?;
        Ok::<u64, Error>(number.unwrap_or(0))
    };
    Ok(MemoryEntry {
        limit: read("limit_in_bytes")?,
        usage: read("usage_in_bytes")?,
        max: read("max_usage_in_bytes")?,
        failcnt: read("failcnt")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    /// Writes to the limit and to the one with swap, under a limit that stands at 1000.
    fn check(limit: i64, swap: i64, expected: [&[&str]; 2]) {
        let dir = directory(&[(LIMIT, "1000\n"), (SWAP_LIMIT, "")]);
        let memory = Memory {
            limit: Some(limit),
            swap: Some(swap),
            ..Memory::default()
        };
        apply(dir.path(), &memory).unwrap();
        let told = [
            &written(dir.path(), LIMIT)[1..],
            &written(dir.path(), SWAP_LIMIT),
        ];
        assert_eq!(told, expected, "{limit} {swap}");
    }

    #[test]
    fn limits_are_written_where_they_are_set() {
        check(0, 0, [&[], &[]]);
        check(500, 0, [&["500"], &[]]);
        check(0, 500, [&[], &["500"]]);
        check(500, 600, [&["500"], &["600"]]);
        check(-1, 0, [&["-1"], &["-1"]]);
        check(-1, -1, [&["-1"], &["-1"]]);
    }

    #[test]
    fn growing_limit_with_swap_goes_first_and_shrinking_one_last() {
        // The order shows in which file still has to be there when the other cannot be written.
        let memory = |swap| Memory {
            limit: Some(500),
            swap: Some(swap),
            ..Memory::default()
        };
        let dir = directory(&[(LIMIT, "1000\n")]);
        assert!(apply(dir.path(), &memory(2000)).is_err());
        assert_eq!(written(dir.path(), LIMIT), ["1000"], "grows: swap is first");
        assert!(apply(dir.path(), &memory(600)).is_err());
        assert_eq!(
            written(dir.path(), LIMIT),
            ["1000", "500"],
            "shrinks: swap is last"
        );
    }

    #[test]
    fn unlimited_memory_needs_no_swap_accounting() {
        let dir = directory(&[(LIMIT, "")]);
        apply(
            dir.path(),
            &Memory {
                limit: Some(-1),
                ..Memory::default()
            },
        )
        .unwrap();
        assert_eq!(written(dir.path(), LIMIT), ["-1"]);
    }

    #[test]
    fn other_values_go_to_their_files() {
        let names = [
            "memory.soft_limit_in_bytes",
            "memory.oom_control",
            "memory.swappiness",
        ];
        let dir = directory(&names.map(|name| (name, "")));
        let memory = Memory {
            reservation: Some(7),
            disable_oom_killer: true,
            swappiness: Some(0),
            kernel: Some(5),
            kernel_tcp: Some(5),
            ..Memory::default()
        };
        apply(dir.path(), &memory).unwrap();
        assert_eq!(
            names.map(|name| written(dir.path(), name).join(" ")),
            ["7", "1", "0"]
        );
        let wild = Memory {
            swappiness: Some(101),
            ..Memory::default()
        };
        assert!(matches!(
            apply(dir.path(), &wild),
            Err(Error::Invalid { .. })
        ));
        let keep = Memory {
            swappiness: Some(u64::MAX),
            ..Memory::default()
        };
        apply(dir.path(), &keep).unwrap();
    }

    #[test]
    fn counters_are_read_and_missing_ones_are_zero() {
        let dir = directory(&[
            ("memory.stat", "cache 1\nrss 2\ntotal_rss 3\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.usage_in_bytes", "4\n"),
            ("memory.max_usage_in_bytes", "5\n"),
            ("memory.failcnt", "6\n"),
            ("memory.kmem.usage_in_bytes", "7\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 1\noom_kill 8\n",
            ),
        ]);
        let memory = read(dir.path()).unwrap();
        assert_eq!(memory.stat["total_rss"], 3);
        let usage = MemoryEntry {
            limit: 9_223_372_036_854_771_712,
            usage: 4,
            max: 5,
            failcnt: 6,
        };
        assert_eq!(memory.usage, usage);
        assert_eq!(memory.swap, MemoryEntry::default());
        assert_eq!(memory.kernel.usage, 7);
        assert_eq!(
            memory.oom,
            OomControl {
                oom_kill_disable: 0,
                under_oom: 1,
                oom_kill: 8
            }
        );
    }
}
