//! When the program of a rich container is ready, as annotations say. Who waits for it is the host
//! side's affair.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use serde::{Deserialize, Serialize};

use super::{Mode, annotation};
use crate::annotations::seconds;
use crate::{Error, Result};

/// What the start waits for: `notify`, `booted`, `file:/PATH`, `port:N`.
pub const READY: &str = "org.pouch.rich.ready";
/// How long, in seconds.
pub const TIMEOUT: &str = "org.pouch.rich.ready-timeout";

const TIMEOUT_S: u32 = 60;
/// Less than what shim-core gives a start.
const TIMEOUT_S_MAX: u32 = 240;

/// Where a program says that it is ready (sd_notify(3)).
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Before what is different for each container in the abstract name of its socket.
const SOCKET: &str = "org.pouch.rich.ready/";

/// A name that nobody else has in the same network.
pub(super) fn socket() -> String {
    // Its keys are random.
    let number = RandomState::new().build_hasher().finish();
    format!("{SOCKET}{number:016x}")
}

/// An environment with another place for the program's word, or, for a process that is not the
/// program, without ours.
pub(super) fn replace_socket(env: &mut Vec<String>, entry: Option<String>) {
    let ours = format!("{VARIABLE}=@{SOCKET}");
    let any = format!("{VARIABLE}=");
    let taken = if entry.is_some() { any } else { ours };
    env.retain(|old| !old.starts_with(&taken));
    env.extend(entry);
}

/// What the start waits for, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// What.
    pub what: What,
    /// Seconds.
    pub timeout_s: u32,
}

/// What tells that a container is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Its program says so (sd_notify(3)), at a socket of this abstract name.
    Notified(String),
    /// Its systemd says that it has started all; at a socket of this abstract name.
    Booted(String),
    /// There is a file at this absolute path in the container.
    File(String),
    /// Somebody in its network listens at this port of TCP.
    Port(u16),
}

impl Readiness {
    /// What these annotations ask for; `socket` is the abstract name of one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what means nothing, or not in this mode.
    pub(super) fn of(
        annotations: &BTreeMap<String, String>,
        mode: Mode,
        socket: &str,
    ) -> Result<Option<Self>> {
        let Some(text) = annotations.get(READY) else {
            return match annotations.get(TIMEOUT) {
                Some(_) => {
                    let why = format!("there is nothing to wait for: {READY} is missing");
                    Err(Error::invalid(annotation(TIMEOUT), why))
                }
                None => Ok(None),
            };
        };
        let what = match text.as_str() {
            "notify" => What::Notified(socket.to_owned()),
            "booted" if mode == Mode::Systemd => What::Booted(socket.to_owned()),
            "booted" => {
                let why = format!("only systemd says booted, and mode is {}", mode.as_str());
                return Err(Error::invalid(annotation(READY), why));
            }
            text => of_text(text)?,
        };
        let timeout_s = annotations
            .get(TIMEOUT)
            .map(|text| seconds(TIMEOUT, text, TIMEOUT_S_MAX));
        Ok(Some(Self {
            what,
            timeout_s: timeout_s.transpose()?.unwrap_or(TIMEOUT_S),
        }))
    }

    /// What the program's environment says of it.
    pub(super) fn of_program(&self) -> Option<String> {
        match &self.what {
            What::Notified(name) => Some(format!("{VARIABLE}=@{name}")),
            What::Booted(_) | What::File(_) | What::Port(_) => None,
        }
    }

    /// Where the image's init says it.
    pub(crate) fn socket_of_init(&self) -> Option<String> {
        match &self.what {
            What::Booted(name) => Some(format!("@{name}")),
            What::Notified(_) | What::File(_) | What::Port(_) => None,
        }
    }

    /// The annotation's value, for messages.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.what {
            What::Notified(_) => "notify".to_owned(),
            What::Booted(_) => "booted".to_owned(),
            What::File(path) => format!("file:{path}"),
            What::Port(port) => format!("port:{port}"),
        }
    }
}

fn of_text(text: &str) -> Result<What> {
    let known = match text.split_once(':') {
        Some(("file", path)) => absolute_file(path).map(What::File),
        Some(("port", number)) => port(number).map(What::Port),
        _ => None,
    };
    known.ok_or_else(|| {
        let why = format!("{text:?} is none of notify, booted, file:/PATH, port:1 to port:65535");
        Error::invalid(annotation(READY), why)
    })
}

/// The path of something in a directory.
pub(super) fn absolute_file(path: &str) -> Option<String> {
    let is_one = path.len() > 1 && path.starts_with('/') && !path.ends_with('/');
    (is_one && !path.contains('\0')).then(|| path.to_owned())
}

/// A number of TCP's.
pub(super) fn port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[(&str, &str)], mode: Mode) -> Result<Option<Readiness>> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Readiness::of(&words.iter().map(own).collect(), mode, "socket")
    }

    #[test]
    fn a_program_is_ready_by_its_word_a_file_or_a_port() {
        let socket = "socket".to_owned();
        for (text, what) in [
            ("notify", What::Notified(socket.clone())),
            ("booted", What::Booted(socket)),
            ("file:/run/a:b", What::File("/run/a:b".to_owned())),
            ("port:8080", What::Port(8080)),
        ] {
            let ready = parse(&[(READY, text)], Mode::Systemd).unwrap().unwrap();
            assert_eq!((ready.what.clone(), ready.timeout_s), (what, 60));
            assert_eq!(ready.text(), text);
        }
        let limited = parse(&[(READY, "notify"), (TIMEOUT, "240")], Mode::DumbInit);
        assert_eq!(limited.unwrap().unwrap().timeout_s, 240);
        assert_eq!(parse(&[], Mode::DumbInit).unwrap(), None);
    }

    #[test]
    fn the_program_alone_has_the_place_for_its_word() {
        let ready = parse(&[(READY, "notify")], Mode::DumbInit);
        let ready = ready.unwrap().unwrap();
        let ours = Readiness {
            what: What::Notified(socket()),
            ..ready
        };
        let mut env = vec!["A=b".to_owned(), "NOTIFY_SOCKET=/run/x".to_owned()];
        replace_socket(&mut env, None);
        assert_eq!(env.len(), 2, "that of somebody else");
        replace_socket(&mut env, ours.of_program());
        assert_eq!(env.len(), 2);
        assert!(env[1].starts_with("NOTIFY_SOCKET=@org.pouch.rich.ready/"));
        replace_socket(&mut env, None);
        assert_eq!(env, ["A=b"]);
        assert_ne!(socket(), socket());
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let none = "is none of notify, booted, file:/PATH, port:1 to port:65535";
        for text in [
            "",
            "port",
            "port:0",
            "port:+1",
            "port:65536",
            "file:x",
            "file:/",
            "file:/x/",
            "Notify",
        ] {
            let error = parse(&[(READY, text)], Mode::DumbInit).unwrap_err();
            let expected = format!("annotations.{READY}: {text:?} {none}");
            assert_eq!(error.to_string(), expected);
        }
        for (words, why) in [
            (
                &[(READY, "booted")][..],
                "ready: only systemd says booted, and mode is sbin-init",
            ),
            (
                &[(TIMEOUT, "3")],
                "ready-timeout: there is nothing to wait for: org.pouch.rich.ready is missing",
            ),
            (
                &[(READY, "notify"), (TIMEOUT, "241")],
                "ready-timeout: \"241\" is no number of seconds from 1 to 240",
            ),
        ] {
            let error = parse(words, Mode::SbinInit).unwrap_err().to_string();
            assert_eq!(error, format!("annotations.org.pouch.rich.{why}"));
        }
    }
}
