//! pids, whose files are the same in both versions.

use std::path::Path;

use crate::resources::Pids;
use crate::stats::PidsUsage;
use crate::{Result, file};

/// What is asked of the controller, by its name in config.json. No limit can be had without it.
pub(crate) fn asked(pids: &Pids) -> Option<&'static str> {
    pids.limit
        .filter(|limit| *limit >= 0)
        .map(|_| "linux.resources.pids.limit")
}

/// Writes the limit; see [`Pids::limit`] for 0 and below.
pub(crate) fn apply(dir: &Path, pids: &Pids) -> Result<()> {
    match pids.limit {
        None => Ok(()),
        Some(..0) => file::write(dir, "pids.max", "max"),
        Some(limit) => file::write_number(dir, "pids.max", limit.max(1)),
    }
}

/// Tasks now and at most; none where the controller is off.
pub(crate) fn read(dir: &Path) -> Result<Option<PidsUsage>> {
    let Some(current) = file::read_number_if_there(dir, "pids.current")? else {
        return Ok(None);
    };
    let limit = file::read_number(dir, "pids.max")?;
    Ok(Some(PidsUsage {
        current,
        limit: if limit == u64::MAX { 0 } else { limit },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn zero_is_one_and_negative_is_no_limit() {
        for (limit, expected) in [
            (None, vec![]),
            (Some(-1), vec!["max"]),
            (Some(i64::MIN), vec!["max"]),
            (Some(0), vec!["1"]),
            (Some(32), vec!["32"]),
        ] {
            let dir = directory(&[("pids.max", "")]);
            apply(dir.path(), &Pids { limit }).unwrap();
            assert_eq!(written(dir.path(), "pids.max"), expected, "{limit:?}");
        }
    }

    #[test]
    fn no_limit_is_shown_as_zero() {
        let dir = directory(&[("pids.current", "3\n"), ("pids.max", "max\n")]);
        assert_eq!(
            read(dir.path()).unwrap(),
            Some(PidsUsage {
                current: 3,
                limit: 0
            })
        );
        assert_eq!(read(directory(&[]).path()).unwrap(), None);
    }
}
