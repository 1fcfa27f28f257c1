//! Sockets that the service manager passes (sd_listen_fds(3)). It must run once, before anything
//! else takes descriptors.

use std::os::fd::RawFd;

use super::Listener;
use crate::{Error, Result};

/// SD_LISTEN_FDS_START of sd-daemon.h.
const FIRST: RawFd = 3;

/// The variables of the protocol, as the process was given them.
#[derive(Debug, Default)]
struct Variables {
    pid: Option<String>,
    count: Option<String>,
}

/// The socket passed under LISTEN_FDS, when it is for this process.
///
/// # Errors
/// [`Error::Invalid`] for more than one socket, or one that cannot be served.
pub fn passed_socket() -> Result<Option<Listener>> {
    let variable = |name| std::env::var(name).ok();
    let variables = Variables {
        pid: variable("LISTEN_PID"),
        count: variable("LISTEN_FDS"),
    };
    match count(&variables, std::process::id())? {
        0 => Ok(None),
        1 => {
            let descriptor = sys::take_inherited_fd(FIRST).map_err(Error::io(
                "take the descriptor that LISTEN_FDS announces,",
                format!("/proc/self/fd/{FIRST}"),
            ))?;
            Listener::inherited(descriptor).map(Some)
        }
        many => Err(Error::Invalid(format!(
            "the service manager passed {many} sockets; one ListenStream= is served"
        ))),
    }
}

fn count(variables: &Variables, own: u32) -> Result<u32> {
    let number = |name: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => text
            .parse::<u32>()
            .map(Some)
            .map_err(|e| Error::Invalid(format!("{name}={text:?} is no number: {e}"))),
    };
    // Variables that were meant for a parent of ours come along and do not count.
    match number("LISTEN_PID", &variables.pid)? {
        Some(pid) if pid == own => Ok(number("LISTEN_FDS", &variables.count)?.unwrap_or(0)),
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_count_only_when_they_are_for_this_process() {
        let check = |pid: Option<&str>, fds: Option<&str>, expected: Option<u32>| {
            let variables = Variables {
                pid: pid.map(str::to_owned),
                count: fds.map(str::to_owned),
            };
            assert_eq!(count(&variables, 42).ok(), expected, "{variables:?}");
        };
        check(None, None, Some(0));
        check(Some("42"), Some("1"), Some(1));
        check(Some("42"), Some("3"), Some(3));
        check(Some("42"), None, Some(0));
        check(Some("7"), Some("1"), Some(0));
        check(None, Some("1"), Some(0));
        check(Some("x"), Some("1"), None);
        check(Some("42"), Some("-1"), None);
    }
}
