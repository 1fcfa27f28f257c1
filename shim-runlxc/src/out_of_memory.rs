//! Names memory as the reason when a new process of a container went away without a word.

use std::io::ErrorKind;

use cgroups::{Cgroup, Stats};

use crate::Error;

/// Who was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The container's init, while it was made.
    Init,
    /// A process that was to join it.
    Exec,
}

impl Victim {
    /// As errors call it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Init => "the container's init",
            Self::Exec => "the process that joins the container",
        }
    }
}

/// Limits above this are none (version 1 has the largest multiple of a page).
const UNLIMITED_FROM: u64 = 1 << 62;

/// The error of a container that was being made, or a better one when the kernel has killed
/// somebody in its new cgroup for memory. `asked` is the limit as the configuration has it: the
/// kernel rounds it down to a page.
pub(crate) fn explain(cgroup: &Cgroup, asked: Option<i64>, error: Error) -> Error {
    if !is_silent_end(&error) || cgroup.oom_kills().unwrap_or_default() == 0 {
        return error;
    }
    let asked = asked
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0);
    Error::OutOfMemory {
        who: Victim::Init,
        limit: limited(asked.or_else(|| limit_of(cgroup))),
    }
}

/// The same of a process that joins; `before` is what [`Cgroup::oom_kills`] told before it came.
pub(crate) fn explain_exec(cgroup: &Cgroup, before: Option<u64>, error: Error) -> Error {
    let killed = before
        .zip(cgroup.oom_kills())
        .is_some_and(|(before, now)| now > before);
    if !is_silent_end(&error) || !killed {
        return error;
    }
    Error::OutOfMemory {
        who: Victim::Exec,
        limit: limited(limit_of(cgroup)),
    }
}

fn limited(limit: Option<u64>) -> Option<u64> {
    limit.filter(|bytes| *bytes < UNLIMITED_FROM)
}

fn limit_of(cgroup: &Cgroup) -> Option<u64> {
    match cgroup.stats() {
        Ok(Stats::V1(stats)) => Some(stats.memory.usage.limit),
        Ok(Stats::V2(stats)) => Some(stats.memory.usage_limit),
        Err(_unknown) => None,
    }
}

/// Whether this is how it looks when the peer dies.
fn is_silent_end(error: &Error) -> bool {
    match error {
        Error::Vanished { .. } => true,
        Error::Launch(launch::Error::Socket { source, .. }) => matches!(
            source.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        Error::Launch(launch::Error::CutOff { .. }) => true,
        _ => false,
    }
}
