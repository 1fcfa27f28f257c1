//! memory of version 2: limits made from version 1's, and numbers.

use std::path::Path;

use super::pressure;
use crate::convert::swap_alone;
use crate::resources::Memory;
use crate::stats::{MemoryEvents, MemoryV2};
use crate::{Error, Result, file};

/// Writes what is set.
pub(crate) fn apply(dir: &Path, memory: &Memory) -> Result<()> {
    let limit = memory.limit.unwrap_or(0);
    let swap = memory.swap.unwrap_or(0);
    if memory.check_before_update {
        check_usage(dir, limit, swap)?;
    }
    if let Some(swap) = swap_alone(swap, limit)? {
        let value = text(swap);
        match file::write(dir, "memory.swap.max", &value) {
            // Without swap accounting there is neither a limit to lift nor swap to forbid.
            Err(error) if error.is_not_found() && (value == "max" || value == "0") => {}
            written => written?,
        }
    }
    if limit != 0 {
        file::write(dir, "memory.max", &text(limit))?;
    }
    if let Some(bytes) = memory.reservation.filter(|bytes| *bytes != 0) {
        file::write(dir, "memory.low", &text(bytes))?;
    }
    Ok(())
}

fn text(bytes: i64) -> String {
    if bytes == -1 {
        "max".to_owned()
    } else {
        bytes.to_string()
    }
}

/// memory.max below what is in use kills the container; some callers want a refusal instead. When
/// the usage cannot be read the limit is tried, as by runc.
fn check_usage(dir: &Path, limit: i64, swap: i64) -> Result<()> {
    let Ok(usage) = file::read_number(dir, "memory.current") else {
        return Ok(());
    };
    for (bytes, what) in [(swap, "memory+swap"), (limit, "memory")] {
        if bytes > 0 && u64::try_from(bytes).is_ok_and(|bytes| bytes <= usage) {
            return Err(Error::Invalid {
                field: "linux.resources.memory.checkBeforeUpdate",
                why: format!("rejecting {what} limit {bytes} <= usage {usage}"),
            });
        }
    }
    Ok(())
}

/// Everything the controller counts; none where it is off.
pub(crate) fn read(dir: &Path) -> Result<Option<MemoryV2>> {
    let Some(usage) = file::read_number_if_there(dir, "memory.current")? else {
        return Ok(None);
    };
    let stat = file::read(dir, "memory.stat")?;
    let number = |name: &str| Ok::<u64, Error>(file::read_number_if_there(dir, name)?.unwrap_or(0));
    Ok(Some(MemoryV2 {
        stat: file::pairs(&stat)
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        usage,
        usage_limit: number("memory.max")?,
        max_usage: number("memory.peak")?,
        swap_usage: number("memory.swap.current")?,
        swap_limit: number("memory.swap.max")?,
        swap_max_usage: number("memory.swap.peak")?,
        events: events(dir)?,
        psi: pressure::read(dir, "memory.pressure")?,
    }))
}

/// memory.events.
pub(crate) fn events(dir: &Path) -> Result<MemoryEvents> {
    let text = file::read(dir, "memory.events")?;
    let value = |key: &str| file::value_of(&text, key).unwrap_or(0);
    Ok(MemoryEvents {
        low: value("low"),
        high: value("high"),
        max: value("max"),
        oom: value("oom"),
        oom_kill: value("oom_kill"),
        oom_group_kill: value("oom_group_kill"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    /// What memory.max, memory.swap.max and memory.low are told.
    fn check(limit: i64, swap: i64, reservation: i64, expected: [&str; 3]) {
        let names = ["memory.max", "memory.swap.max", "memory.low"];
        let dir = directory(&names.map(|name| (name, "")));
        let memory = Memory {
            limit: Some(limit),
            swap: Some(swap),
            reservation: Some(reservation),
            ..Memory::default()
        };
        apply(dir.path(), &memory).unwrap();
        let told = names.map(|name| written(dir.path(), name).join(" "));
        assert_eq!(told, expected, "{limit} {swap} {reservation}");
    }

    #[test]
    fn limits_become_those_of_version_2() {
        check(0, 0, 0, ["", "", ""]);
        check(4096, 0, 2048, ["4096", "", "2048"]);
        check(4096, 8192, -1, ["4096", "4096", "max"]);
        check(4096, 4096, 0, ["4096", "0", ""]);
        check(-1, 0, 0, ["max", "max", ""]);
        check(4096, -1, 0, ["4096", "max", ""]);
    }

    #[test]
    fn swap_without_accounting_can_be_forbidden_but_not_limited() {
        let dir = directory(&[("memory.max", "")]);
        let memory = |swap| Memory {
            limit: Some(4096),
            swap: Some(swap),
            ..Memory::default()
        };
        apply(dir.path(), &memory(4096)).unwrap();
        apply(dir.path(), &memory(-1)).unwrap();
        assert!(apply(dir.path(), &memory(8192)).unwrap_err().is_not_found());
    }

    #[test]
    fn limit_below_usage_is_refused_on_request() {
        let dir = directory(&[("memory.max", ""), ("memory.current", "5000\n")]);
        let memory = |limit, check_before_update| Memory {
            limit: Some(limit),
            check_before_update,
            ..Memory::default()
        };
        let error = apply(dir.path(), &memory(5000, true)).unwrap_err();
        assert!(
            error.to_string().contains("limit 5000 <= usage 5000"),
            "{error}"
        );
        apply(dir.path(), &memory(5001, true)).unwrap();
        apply(dir.path(), &memory(10, false)).unwrap();
    }

    #[test]
    fn numbers_are_read_and_newer_files_may_be_missing() {
        let dir = directory(&[
            ("memory.current", "7\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n"),
        ]);
        let memory = read(dir.path()).unwrap().unwrap();
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.swap_limit),
            (7, u64::MAX, 0)
        );
        assert_eq!((memory.stat["file"], memory.events.oom_kill), (2, 4));
        assert_eq!(read(directory(&[]).path()).unwrap(), None);
    }
}
