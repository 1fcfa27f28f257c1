//! One service: how it is started and stopped, and when it is started again. Decides nothing about
//! the others.

use std::path::Path;
use std::time::{Duration, Instant};

use sys::{ExitStatus, Pid, Spawn, User};

use crate::error::{Error, Result};
use crate::hooks::{self, Stage};
use crate::image_init::accounts;
use crate::plan::{Hook, Service, ServiceKind, Services};

use super::SCRIPTS;

/// The first wait before a service is started again; each one after it is twice as long.
pub(crate) const WAIT_MIN: Duration = Duration::from_millis(100);
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// Whoever ran so long begins with the first wait again.
pub(crate) const STEADY: Duration = Duration::from_secs(60);

/// What a service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Nothing: it was not started, or has been stopped.
    Down,
    /// Its script has started it, and nobody knows its processes.
    Started,
    /// It runs.
    Up {
        pid: Pid,
        since: Instant,
        /// Before it is started again.
        wait: Duration,
    },
    /// It has ended, or comes after the program, and is started then.
    Waiting { until: Instant, wait: Duration },
}

/// What comes of the end of a process.
pub(super) fn after_end(life: Life, ended: Pid, now: Instant) -> Life {
    match life {
        Life::Up { pid, since, wait } if pid == ended => {
            let wait = if now.duration_since(since) >= STEADY {
                WAIT_MIN
            } else {
                wait
            };
            Life::Waiting {
                until: now + wait,
                wait: (wait * 2).min(WAIT_MAX),
            }
        }
        other => other,
    }
}

/// A failure of a service, in its words.
pub(super) fn failed(service: &Service, what: impl std::fmt::Display) -> Error {
    Error::Request {
        step: format!("org.pouch.rich.services: {} {what}", service.name),
        errno: 0,
    }
}

/// Starts a service, after an earlier wait or the first time; `more` comes to its environment.
pub(super) fn start(
    service: &Service,
    environment: &[String],
    more: Option<&str>,
    wait: Option<Duration>,
) -> Result<Life> {
    let ServiceKind::Command { args, .. } = &service.kind else {
        return script(service, "start", environment).map(|()| Life::Started);
    };
    let [program, arguments @ ..] = args.as_slice() else {
        return Err(failed(service, "has no command"));
    };
    let all = environment.iter().map(String::as_str).chain(more);
    let mut spawn = Spawn::new(Path::new(program))
        .args(arguments)
        .env_clear_set(all.map(hooks::environment_entry).collect())
        .new_session();
    if let Some(name) = &service.user {
        let found = accounts::find(&format!("component {}", service.name), name)?;
        spawn = spawn.user(User {
            uid: found.uid,
            gid: found.gid,
            additional_gids: found.additional_gids,
        });
    }
    let cannot = |error| {
        failed(
            service,
            format_args!("cannot be started: {program}: {error}"),
        )
    };
    let child = spawn.spawn().map_err(cannot)?;
    Ok(Life::Up {
        pid: sys::watch(child),
        since: Instant::now(),
        wait: wait.unwrap_or(WAIT_MIN),
    })
}

/// Runs the script of a service, and waits for it.
pub(super) fn script(service: &Service, action: &str, environment: &[String]) -> Result<()> {
    let path = format!("{SCRIPTS}/{}", service.name);
    let hook = Hook {
        args: vec![path.clone(), action.to_owned()],
        path,
        env: environment.to_vec(),
        timeout_s: Some(Services::LIMIT_S.into()),
    };
    // Its stage is not told: what is said of it is made of its parts.
    hooks::run(&hook, "", Stage::StartContainer).map_err(|error| match error {
        Error::HookStatus {
            path,
            status,
            stderr,
            ..
        } => {
            let said = stderr.trim();
            failed(service, format_args!("({path} {action}): {status}: {said}"))
        }
        Error::HookTimeout { path, seconds, .. } => failed(
            service,
            format_args!("({path} {action}) still ran after {seconds} s and was killed"),
        ),
        Error::HookStart { path, source, .. } => {
            failed(service, format_args!("cannot be started: {path}: {source}"))
        }
        other => other,
    })
}

/// What a process that ended at once says.
pub(super) fn ended_early(service: &Service, status: ExitStatus) -> Error {
    let status = hooks::status_words(status);
    failed(service, format_args!("ended before it was ready: {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_as_long_until_a_service_runs_steadily() {
        let start = Instant::now();
        let pid = Pid::from_raw(7);
        let mut wait = WAIT_MIN;
        let mut waits = Vec::new();
        for ran in [0, 0, 0, 59, 60, 0] {
            let up = Life::Up {
                pid,
                since: start,
                wait,
            };
            let now = start + Duration::from_secs(ran);
            let Life::Waiting { until, wait: next } = after_end(up, pid, now) else {
                panic!("it has ended")
            };
            waits.push(until.duration_since(now).as_millis());
            wait = next;
        }
        assert_eq!(waits, [100, 200, 400, 800, 100, 200]);
        let up = Life::Up {
            pid,
            since: start,
            wait: WAIT_MAX,
        };
        let after = after_end(up, pid, start);
        assert!(matches!(after, Life::Waiting { wait, .. } if wait == WAIT_MAX));
        assert_eq!(after_end(up, Pid::from_raw(8), start), up);
        assert_eq!(after_end(Life::Started, pid, start), Life::Started);
    }
}
