//! Which system calls a seccomp profile must leave to a pid 1 that is not the program. Pure.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

/// What pid 1 does under the program's filter all the time.
const CALLS_OF_PID_ONE: [&str; 6] = ["read", "write", "wait4", "waitid", "kill", "exit_group"];

/// What pid 1 does, too, and can be without: but it must not die of the try.
const TRIES_OF_PID_ONE: [&str; 10] = [
    "close",
    "pidfd_send_signal",
    "openat",
    "statx",
    "fstat",
    "lseek",
    "brk",
    "mmap",
    "munmap",
    "sigaltstack",
];

/// What a process that starts its program again does under its filter, besides.
const CALLS_OF_RESTARTS: [&str; 6] = [
    "clone",
    "poll",
    "signalfd4",
    "pipe2",
    "rt_sigprocmask",
    "getpgid",
];

/// The first system call that starting a program again needs and a profile forbids.
pub(super) fn forbidden_to_restarts(profile: &LinuxSeccomp) -> Option<&'static str> {
    let mut calls = CALLS_OF_RESTARTS.into_iter();
    calls.find(|call| !may(profile, call, allows))
}

fn allows(action: LinuxSeccompAction) -> bool {
    use LinuxSeccompAction as Action;
    matches!(action, Action::ScmpActAllow | Action::ScmpActLog)
}

/// The first system call that pid 1 needs and a profile forbids, whatever its arguments, or that it
/// would die of.
pub(super) fn forbidden_to_pid_one(profile: &LinuxSeccomp) -> Option<&'static str> {
    use LinuxSeccompAction as Action;
    let spares = |action| {
        !matches!(
            action,
            Action::ScmpActKill
                | Action::ScmpActKillThread
                | Action::ScmpActKillProcess
                | Action::ScmpActTrap
        )
    };
    let forbidden = CALLS_OF_PID_ONE
        .into_iter()
        .find(|call| !may(profile, call, allows));
    forbidden.or_else(|| {
        TRIES_OF_PID_ONE
            .into_iter()
            .find(|call| !may(profile, call, spares))
    })
}

/// Whether an action that is good enough may come of a system call.
fn may(profile: &LinuxSeccomp, call: &str, is_good: impl Fn(LinuxSeccompAction) -> bool) -> bool {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let mut of_call = rules
        .iter()
        .filter(|rule| rule.names().iter().any(|name| name == call))
        .peekable();
    if of_call.peek().is_none() {
        return is_good(profile.default_action());
    }
    of_call.any(|rule| is_good(rule.action()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A profile that refuses all but these.
    fn allowing(calls: &[&str]) -> LinuxSeccomp {
        let profile = serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}],
        });
        serde_json::from_value(profile).unwrap()
    }

    #[test]
    fn restarts_need_their_own_calls_and_those_of_pid_1_alone() {
        let calls: Vec<_> = CALLS_OF_PID_ONE.iter().chain(&CALLS_OF_RESTARTS).collect();
        let but = |left_out: &str| {
            let calls = calls.iter().map(|call| **call);
            allowing(&calls.filter(|call| *call != left_out).collect::<Vec<_>>())
        };
        assert_eq!(forbidden_to_restarts(&but("")), None);
        for call in CALLS_OF_RESTARTS {
            assert_eq!(forbidden_to_restarts(&but(call)), Some(call));
        }
        assert_eq!(forbidden_to_pid_one(&but("write")), Some("write"));
    }
}
