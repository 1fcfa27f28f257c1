//! Services beside the program of a container in mode `dumb-init`: which there are, and how each is
//! started. Only what annotations say of them.

use std::collections::BTreeMap;

use launch::plan::{Process, Ready, Service, ServiceKind, Services, When};

use super::{Mode, SERVICES, annotation, hooks, ready};
use crate::{Error, Result};

/// Before the name of a service: the command that it is. A service without one is a script of the
/// image.
pub const COMMAND_OF: &str = "org.pouch.rich.service.";

/// Behind such a key: when the service is ready.
const READY: &str = ".ready";

/// As many are enough.
const SERVICES_MAX: usize = 64;

/// Services in the order of their start.
///
/// # Errors
/// [`Error::Invalid`] for a value that means nothing, and for what is said of a service that is not
/// in the list.
pub(super) fn of(
    annotations: &BTreeMap<String, String>,
    names: &[String],
    mode: Mode,
) -> Result<Vec<Service>> {
    if mode != Mode::DumbInit {
        return match keys(annotations).next() {
            Some(key) => {
                let why = format!("mode {} has no such thing", mode.as_str());
                Err(Error::invalid(annotation(key), why))
            }
            None => Ok(Vec::new()),
        };
    }
    if names.len() > SERVICES_MAX {
        let why = format!("{} services, and {SERVICES_MAX} are the most", names.len());
        return Err(Error::invalid(annotation(SERVICES), why));
    }
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            let why = format!("{name} is named twice");
            return Err(Error::invalid(annotation(SERVICES), why));
        }
    }
    check_keys(annotations, names)?;
    names
        .iter()
        .map(|name| service(annotations, name))
        .collect()
}

/// What is said of services one by one.
pub(crate) fn keys(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
    let all = annotations.keys().map(String::as_str);
    all.filter(|key| key.starts_with(COMMAND_OF))
}

/// Every key of a service must be of one that is named.
fn check_keys(annotations: &BTreeMap<String, String>, names: &[String]) -> Result<()> {
    let is_of_one = |rest: &str| {
        let mut names = names.iter();
        names.any(|name| rest == name || rest.strip_suffix(READY) == Some(name))
    };
    let mut strange =
        keys(annotations).filter_map(|key| Some((key, key.strip_prefix(COMMAND_OF)?)));
    match strange.find(|(_, rest)| !is_of_one(rest)) {
        Some((key, _)) => {
            let why = format!("{SERVICES} names no such service");
            Err(Error::invalid(annotation(key), why))
        }
        None => Ok(()),
    }
}

fn service(annotations: &BTreeMap<String, String>, name: &str) -> Result<Service> {
    let key = format!("{COMMAND_OF}{name}");
    let ready_key = format!("{key}{READY}");
    let kind = match (annotations.get(&key), annotations.get(&ready_key)) {
        (Some(text), ready) => ServiceKind::Command {
            args: hooks::arguments(&annotation(&key), text)?,
            ready: ready.map_or(Ok(Ready::Started), |text| {
                readiness(&annotation(&ready_key), text)
            })?,
        },
        (None, Some(_)) => {
            let why = format!("without {key} it is a script, which is ready when it has ended");
            return Err(Error::invalid(annotation(&ready_key), why));
        }
        (None, None) => ServiceKind::Script,
    };
    Ok(Service {
        name: name.to_owned(),
        kind,
        user: None,
        when: When::Before,
    })
}

/// The words of a command, as annotations have it; `field` says it.
///
/// # Errors
/// [`Error::Invalid`] for what is none.
pub fn command(field: &str, text: &str) -> Result<Vec<String>> {
    hooks::arguments(field, text)
}

/// None yet, beside that program.
#[must_use]
pub fn beside(program: &Process) -> Services {
    Services {
        list: Vec::new(),
        process: hooks::process(Vec::new(), program),
    }
}

/// When a command is ready; `field` says it.
///
/// # Errors
/// [`Error::Invalid`] for what means nothing.
pub fn readiness(field: &str, text: &str) -> Result<Ready> {
    let known = match text.split_once(':') {
        Some(("file", path)) => ready::absolute_file(path).map(Ready::File),
        Some(("port", number)) => ready::port(number).map(Ready::Port),
        None if text == "notify" => Some(Ready::Notified),
        _ => None,
    };
    known.ok_or_else(|| {
        let why = format!("{text:?} is none of file:/PATH, port:1 to port:65535, notify");
        Error::invalid(field, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(annotations: &[(&str, &str)], names: &[&str]) -> Result<Vec<Service>> {
        let own = |(key, value): &(&str, &str)| (format!("{COMMAND_OF}{key}"), (*value).to_owned());
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        of(
            &annotations.iter().map(own).collect(),
            &names,
            Mode::DumbInit,
        )
    }

    #[test]
    fn a_service_is_a_script_or_a_command_with_its_readiness() {
        let annotations = [
            ("web", "/usr/sbin/web -x"),
            ("web.ready", "file:/run/web.pid"),
            ("say", "sh:exec say"),
            ("say.ready", "notify"),
            ("rc.local", "/bin/true"),
            ("http", "/bin/httpd"),
            ("http.ready", "port:80"),
        ];
        let names = ["cron", "say", "web", "rc.local", "http"];
        let services = parse(&annotations, &names).unwrap();
        let command = |args: &[&str], ready| ServiceKind::Command {
            args: args.iter().map(|&word| word.to_owned()).collect(),
            ready,
        };
        let kinds: Vec<_> = services.into_iter().map(|service| service.kind).collect();
        assert_eq!(
            kinds,
            [
                ServiceKind::Script,
                command(&["/bin/sh", "-c", "exec say"], Ready::Notified),
                command(
                    &["/usr/sbin/web", "-x"],
                    Ready::File("/run/web.pid".to_owned())
                ),
                command(&["/bin/true"], Ready::Started),
                command(&["/bin/httpd"], Ready::Port(80)),
            ]
        );
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (annotations, names, why) in [
            (
                &[("wbe", "/web")][..],
                &["web"][..],
                "wbe: org.pouch.rich.services names no such service",
            ),
            (
                &[("web.ready", "notify")],
                &["web"],
                "web.ready: without org.pouch.rich.service.web it is a script, which is ready \
                 when it has ended",
            ),
            (
                &[("web", "/web"), ("web.ready", "port:http")],
                &["web"],
                "web.ready: \"port:http\" is none of file:/PATH, port:1 to port:65535, notify",
            ),
            (
                &[("web", "/web"), ("web.ready", "file:x")],
                &["web"],
                "web.ready: \"file:x\" is none of file:/PATH, port:1 to port:65535, notify",
            ),
        ] {
            let message = parse(annotations, names).unwrap_err().to_string();
            assert_eq!(message, format!("annotations.{COMMAND_OF}{why}"));
        }
        let twice = parse(&[], &["a", "b", "a"]).unwrap_err().to_string();
        assert_eq!(twice, format!("annotations.{SERVICES}: a is named twice"));
    }
}
