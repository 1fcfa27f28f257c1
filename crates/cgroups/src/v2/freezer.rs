//! Freezing in version 2 (Linux 5.2), where a frozen task still dies of SIGKILL.

use std::path::Path;
use std::time::Duration;

use crate::wait::{Events, Patience, Waited};
use crate::{Error, Result, file};

/// So long a task that sleeps in the kernel may keep its cgroup from being frozen (as in runc).
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Freezes. When it fails, some tasks may be frozen.
pub(crate) fn freeze(dir: &Path) -> Result<()> {
    let events = Events::open(dir, "cgroup.events")?;
    file::write(dir, "cgroup.freeze", "1")?;
    let mut patience = Patience::new(FREEZE_LIMIT);
    loop {
        let text = events.read().map_err(|source| Error::Read {
            path: dir.to_owned(),
            source,
        })?;
        if file::value_of(&text, "frozen") == Some(1) {
            return Ok(());
        }
        if patience.pause(Some(&events)) == Waited::TooLong {
            return Err(Error::Timeout {
                what: "freezing",
                path: dir.to_owned(),
                limit_ms: FREEZE_LIMIT.as_secs() * 1000,
            });
        }
    }
}

/// Thaws; what cannot be frozen is thawed.
pub(crate) fn thaw(dir: &Path) -> Result<()> {
    match file::write(dir, "cgroup.freeze", "0") {
        Err(error) if error.is_not_found() => Ok(()),
        written => written,
    }
}

/// Whether the cgroup itself was frozen.
pub(crate) fn is_frozen(dir: &Path) -> Result<bool> {
    Ok(file::read_number_if_there(dir, "cgroup.freeze")? == Some(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn freezing_is_over_when_the_events_say_so() {
        let dir = directory(&[
            ("cgroup.freeze", ""),
            ("cgroup.events", "populated 1\nfrozen 1\n"),
        ]);
        freeze(dir.path()).unwrap();
        assert!(is_frozen(dir.path()).unwrap());
        thaw(dir.path()).unwrap();
        assert_eq!(written(dir.path(), "cgroup.freeze"), ["1", "0"]);
    }

    #[test]
    fn kernel_without_freezer_cannot_freeze_and_is_thawed() {
        let dir = directory(&[]);
        assert!(freeze(dir.path()).unwrap_err().is_not_found());
        thaw(dir.path()).unwrap();
        assert!(!is_frozen(dir.path()).unwrap());
    }
}
