//! systemd's manager: a transient scope started, changed, stopped (org.freedesktop.systemd1(5)).

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use cgroups::Property;

use super::bus::{Bus, Refusal};
use super::message::{Body, Message};
use crate::error::SystemdFailure;
use crate::{Error, Result};

/// There while systemd is pid 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

const MANAGER: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const JOB_REMOVED: &str = "JobRemoved";
const GET: (&str, &str) = ("org.freedesktop.DBus.Properties", "Get");
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SCOPE: &str = "org.freedesktop.systemd1.Scope";

/// Errors with a meaning to us.
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NOT_LOADED: &str = "org.freedesktop.systemd1.NoSuchUnit";
const NO_OBJECT: &str = "org.freedesktop.DBus.Error.UnknownObject";
const SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";

/// Of properties that a unit does not have, or not with such a value.
const OF_VALUES: [&str; 3] = [
    "org.freedesktop.DBus.Error.InvalidArgs",
    "org.freedesktop.DBus.Error.PropertyReadOnly",
    "org.freedesktop.DBus.Error.UnknownProperty",
];

/// By which the bus says that it does not know what systemd would say.
const NO_ANSWERS: [&str; 4] = [
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Timeout",
    "org.freedesktop.DBus.Error.TimedOut",
    "org.freedesktop.DBus.Error.Disconnected",
];

/// A unit that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) slice: String,
    pub(crate) description: String,
    /// In hexadecimal; empty before systemd 232, and until it has started.
    pub(crate) invocation: String,
    /// Whether it runs, or is about to.
    pub(crate) is_active: bool,
}

/// A connection to the manager that knows when jobs end.
#[derive(Debug)]
pub(crate) struct Manager {
    bus: Bus,
    version: u32,
}

impl Manager {
    /// Connects to the host's systemd; all that is asked of it is over after `limit`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where systemd is not pid 1, [`Error::Systemd`] where it does not answer.
    pub(crate) fn connect(limit: Duration) -> Result<Self> {
        Self::require()?;
        let bus = Bus::connect(Instant::now() + limit).map_err(failed("connect"))?;
        let mut manager = Self { bus, version: 0 };
        manager.version = manager.ask_version()?;
        Ok(manager)
    }

    /// Refuses what needs systemd where it is not pid 1.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub(crate) fn require() -> Result<()> {
        if Self::is_there() {
            return Ok(());
        }
        let why =
            format!("this host was not booted with systemd ({BOOTED} is not there): use cgroupfs");
        Err(Error::unsupported("the systemd cgroup driver", why))
    }

    /// Whether systemd is pid 1 of this host.
    pub(crate) fn is_there() -> bool {
        Path::new(BOOTED).is_dir()
    }

    /// Its version, e.g. 252.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    fn ask_version(&mut self) -> Result<u32> {
        const WHAT: &str = "ask for its version";
        let body = Body::default().text(INTERFACE).text("Version");
        let answer = self.bus.call(MANAGER, GET, &body).map_err(failed(WHAT))?;
        let answer = answer.map_err(refused(WHAT))?;
        let text = answer.single().map_err(failed(WHAT))?;
        version_in(&text).ok_or_else(|| Error::Systemd {
            kind: SystemdFailure::Broken,
            what: WHAT.to_owned(),
            why: format!("{text:?} is none"),
        })
    }

    /// Starts a transient scope and waits until it has started. A unit of its name that has failed is
    /// forgotten first.
    ///
    /// # Errors
    /// [`Error::Systemd`] with what systemd says.
    pub(crate) fn start_scope(&mut self, unit: &str, properties: &[Property]) -> Result<()> {
        let what = format!("start {unit}");
        self.subscribe(&what)?;
        let start = || {
            let body = Body::default().text(unit).text("replace");
            body.properties(properties).no_further_units()
        };
        let mut answer = self.ask("StartTransientUnit", &start(), &what)?;
        if is(&answer, EXISTS) {
            self.reset_failed(unit)?;
            answer = self.ask("StartTransientUnit", &start(), &what)?;
        }
        let job = answer.map_err(refused(&what))?;
        match self.await_job(&job, &what)?.as_str() {
            "done" => Ok(()),
            result => {
                self.reset_failed(unit)?;
                let why = format!("its job ended as {result:?}");
                let kind = SystemdFailure::Broken;
                Err(Error::Systemd { kind, what, why })
            }
        }
    }

    /// Changes properties of a unit, until it ends.
    ///
    /// # Errors
    /// [`Error::Systemd`] with what systemd says.
    pub(crate) fn set_properties(&mut self, unit: &str, properties: &[Property]) -> Result<()> {
        let what = format!("set properties of {unit}");
        // True: not for the next boot.
        let body = Body::default().text(unit).boolean(true);
        let answer = self.ask("SetUnitProperties", &body.properties(properties), &what)?;
        answer.map(drop).map_err(refused(&what))
    }

    /// What there is of a name; none: no unit, or one that is gone meanwhile.
    ///
    /// # Errors
    /// [`Error::Systemd`] with what systemd says.
    pub(crate) fn unit(&mut self, unit: &str) -> Result<Option<Unit>> {
        let what = format!("look at {unit}");
        let answer = self.ask("GetUnit", &Body::default().text(unit), &what)?;
        if is(&answer, NOT_LOADED) {
            return Ok(None);
        }
        let path = answer.map_err(refused(&what))?;
        let path = path.single().map_err(failed(&what))?;
        let mut get = |interface, name| {
            let body = Body::default().text(interface).text(name);
            self.bus.call(&path, GET, &body).map_err(failed(&what))
        };
        let slice = get(SCOPE, "Slice")?;
        let description = get(UNIT, "Description")?;
        let state = get(UNIT, "ActiveState")?;
        let invocation = get(UNIT, "InvocationID")?;
        if [&slice, &description, &state]
            .into_iter()
            .any(|answer| is(answer, NOT_LOADED) || is(answer, NO_OBJECT))
        {
            return Ok(None);
        }
        let text = |answer: std::result::Result<Message, Refusal>| {
            let answer = answer.map_err(refused(&what))?;
            answer.single().map_err(failed(&what))
        };
        Ok(Some(Unit {
            slice: text(slice)?,
            description: text(description)?,
            // Refused by a systemd that has no such property.
            invocation: invocation
                .ok()
                .and_then(|answer| answer.single_bytes().ok())
                .unwrap_or_default(),
            is_active: !matches!(text(state)?.as_str(), "inactive" | "failed"),
        }))
    }

    /// Stops a unit and waits for its end; then systemd knows nothing of it any more. No error when it is
    /// gone.
    ///
    /// # Errors
    /// [`Error::Systemd`] with what systemd says.
    pub(crate) fn stop(&mut self, unit: &str) -> Result<()> {
        let what = format!("stop {unit}");
        self.subscribe(&what)?;
        let body = Body::default().text(unit).text("replace");
        let answer = self.ask("StopUnit", &body, &what)?;
        if is(&answer, NOT_LOADED) {
            return Ok(());
        }
        let job = answer.map_err(refused(&what))?;
        self.await_job(&job, &what)?;
        self.reset_failed(unit)
    }

    /// One that has not failed, or is not there, is as it should be.
    pub(crate) fn reset_failed(&mut self, unit: &str) -> Result<()> {
        let what = format!("forget {unit}");
        let body = Body::default().text(unit);
        let _not_there = self.ask("ResetFailedUnit", &body, &what)?;
        Ok(())
    }

    /// Without it nothing is told of jobs.
    fn subscribe(&mut self, what: &str) -> Result<()> {
        let listening = self.bus.listen_for(INTERFACE, JOB_REMOVED);
        listening.map_err(failed(what))?;
        let answer = self.ask("Subscribe", &Body::default(), what)?;
        if is(&answer, SUBSCRIBED) {
            return Ok(());
        }
        answer.map(drop).map_err(refused(what))
    }

    fn ask(
        &mut self,
        member: &str,
        body: &Body,
        what: &str,
    ) -> Result<std::result::Result<Message, Refusal>> {
        let answer = self.bus.call(MANAGER, (INTERFACE, member), body);
        answer.map_err(failed(what))
    }

    /// The result of the job that an answer names.
    fn await_job(&mut self, answer: &Message, what: &str) -> Result<String> {
        let job = answer.single().map_err(failed(what))?;
        loop {
            let signal = self.bus.signal().map_err(failed(what))?;
            if signal.member != JOB_REMOVED {
                continue;
            }
            let (path, result) = signal.ended_job().map_err(failed(what))?;
            if path == job {
                return Ok(result);
            }
        }
    }
}

/// The first number in what systemd calls its version, e.g. `252.39-1~deb12u1` or `v245`.
fn version_in(text: &str) -> Option<u32> {
    let text = text.trim_start_matches('v');
    let end = text.find(|c: char| !c.is_ascii_digit());
    text[..end.unwrap_or(text.len())].parse().ok()
}

fn is(answer: &std::result::Result<Message, Refusal>, name: &str) -> bool {
    answer.as_ref().is_err_and(|refusal| refusal.name == name)
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    |error| {
        let (kind, why) = match error.kind() {
            io::ErrorKind::TimedOut => {
                let why = "it did not answer in time".to_owned();
                (SystemdFailure::Late, why)
            }
            _ => (SystemdFailure::Broken, error.to_string()),
        };
        Error::Systemd { kind, what, why }
    }
}

fn refused(what: &str) -> impl FnOnce(Refusal) -> Error {
    let what = what.to_owned();
    |refusal| Error::Systemd {
        kind: kind_of(&refusal.name),
        what,
        why: if refusal.text.is_empty() {
            refusal.name
        } else {
            refusal.text
        },
    }
}

fn kind_of(name: &str) -> SystemdFailure {
    match name {
        EXISTS => SystemdFailure::Taken,
        name if OF_VALUES.contains(&name) => SystemdFailure::Value,
        name if NO_ANSWERS.contains(&name) => SystemdFailure::Late,
        _ => SystemdFailure::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_begin_with_a_number() {
        for (text, expected) in [
            ("252.39-1~deb12u1", Some(252)),
            ("v245.4-1.fc32", Some(245)),
            ("219", Some(219)),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(version_in(text), expected, "{text}");
        }
    }

    #[test]
    fn a_refusal_without_words_is_told_by_its_name() {
        let refusal = |text: &str| Refusal {
            name: EXISTS.to_owned(),
            text: text.to_owned(),
        };
        let told = |text| refused("start x.scope")(refusal(text)).to_string();
        assert_eq!(told("It is there."), "systemd: start x.scope: It is there.");
        assert_eq!(told(""), format!("systemd: start x.scope: {EXISTS}"));
        assert!(is(&Err(refusal("")), EXISTS) && !is(&Err(refusal("")), NOT_LOADED));
    }

    #[test]
    fn what_the_bus_says_in_systemds_place_is_no_refusal() {
        for (name, expected) in [
            (EXISTS, SystemdFailure::Taken),
            (
                "org.freedesktop.DBus.Error.PropertyReadOnly",
                SystemdFailure::Value,
            ),
            ("org.freedesktop.DBus.Error.NoReply", SystemdFailure::Late),
            (
                "org.freedesktop.DBus.Error.AccessDenied",
                SystemdFailure::Refused,
            ),
        ] {
            assert_eq!(kind_of(name), expected, "{name}");
            let is_refusal = expected != SystemdFailure::Late;
            assert_eq!(expected.is_refusal(), is_refusal, "{name}");
        }
    }

    #[test]
    fn a_host_without_systemd_is_told_so() {
        if Manager::is_there() {
            Manager::connect(Duration::from_secs(30)).unwrap();
            return;
        }
        let error = Manager::connect(Duration::from_secs(30)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}
