//! freezer of version 1, where a SIGKILL to a task in a frozen cgroup has no effect until it is
//! thawed.

use std::path::Path;
use std::time::Duration;

use crate::wait::{Patience, Waited};
use crate::{Error, Result, file};

/// So long the kernel is asked again while tasks refuse to freeze (runc gives up after about
/// 10 seconds, too).
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// After so many attempts the cgroup is thawed for a moment: while new tasks appear in it, a
/// freezing one need never become a frozen one (runc's experience on Linux 3.10 to 5.4).
const ATTEMPTS_BEFORE_THAW: u32 = 25;

const STATE: &str = "freezer.state";

/// Freezes. When it fails, some tasks may be frozen.
pub(crate) fn freeze(dir: &Path) -> Result<()> {
    let mut patience = Patience::new(FREEZE_LIMIT);
    let mut attempts = 0;
    loop {
        file::write(dir, STATE, "FROZEN")?;
        match file::read(dir, STATE)?.trim() {
            "FROZEN" => return Ok(()),
            "FREEZING" => {}
            other => return Err(file::malformed(dir, STATE, other)),
        }
        attempts += 1;
        if attempts % ATTEMPTS_BEFORE_THAW == 0 {
            thaw(dir)?;
        }
        if patience.pause(None) == Waited::TooLong {
            return Err(Error::Timeout {
                what: "freezing",
                path: dir.to_owned(),
                limit_ms: FREEZE_LIMIT.as_secs() * 1000,
            });
        }
    }
}

/// Thaws.
pub(crate) fn thaw(dir: &Path) -> Result<()> {
    file::write(dir, STATE, "THAWED")
}

/// Whether the cgroup itself was frozen; one that only lies in a frozen one was not.
pub(crate) fn is_frozen(dir: &Path) -> Result<bool> {
    let Some(state) = file::read_if_there(dir, STATE)? else {
        return Ok(false);
    };
    if state.trim() == "THAWED" {
        return Ok(false);
    }
    // Before Linux 3.8 the state does not say whose it is.
    let own = file::read_if_there(dir, "freezer.self_freezing")?;
    Ok(own.is_none_or(|own| own.trim() == "1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn cgroup_that_answers_nonsense_is_an_error() {
        // The recording file answers with all that was ever written to it.
        let dir = directory(&[(STATE, "")]);
        freeze(dir.path()).unwrap();
        let error = freeze(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        thaw(dir.path()).unwrap();
        assert_eq!(written(dir.path(), STATE), ["FROZEN", "FROZEN", "THAWED"]);
    }

    #[test]
    fn only_the_cgroups_own_state_counts() {
        for (state, own, frozen) in [
            ("THAWED\n", Some("0\n"), false),
            ("FROZEN\n", Some("1\n"), true),
            ("FREEZING\n", Some("1\n"), true),
            ("FROZEN\n", Some("0\n"), false),
            ("FROZEN\n", None, true),
        ] {
            let mut files = vec![(STATE, state)];
            files.extend(own.map(|own| ("freezer.self_freezing", own)));
            let dir = directory(&files);
            assert_eq!(is_frozen(dir.path()).unwrap(), frozen, "{state} {own:?}");
        }
        assert!(!is_frozen(directory(&[]).path()).unwrap());
    }
}
