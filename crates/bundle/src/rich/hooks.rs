//! Hooks of a rich container: commands that run inside of it, before its program and after its
//! end. Only what annotations say of them; who runs them when is the host side's.

use std::collections::BTreeMap;

use launch::plan::{Process, Toggle};
use serde::{Deserialize, Serialize};

use super::{annotation, components, ready};
use crate::annotations::{nearest, seconds};
use crate::{Error, Result};

/// What runs in the container before its program, at every start.
pub const PRESTART: &str = "org.pouch.rich.prestart";
/// What runs over the same root and mounts after the end of its last process.
pub const POSTSTOP: &str = "org.pouch.rich.poststop";
/// How long each of them may run, in seconds.
pub const TIMEOUT: &str = "org.pouch.rich.hook-timeout";
/// What a failed prestart hook means for the start.
pub const FAILURE: &str = "org.pouch.rich.hook-failure";

/// All of them.
pub const KEYS: [&str; 4] = [PRESTART, POSTSTOP, TIMEOUT, FAILURE];

const TIMEOUT_S: u32 = 30;
const TIMEOUT_S_MAX: u32 = 600;

/// Longest command, in bytes.
const COMMAND_BYTES_MAX: usize = 16 << 10;

/// What stands before a command for the image's shell.
const INLINE: &str = "sh:";
/// What stands before the name of a script of the host.
const OF_HOST: &str = "host:";

/// Where scripts of the host are in a container, each by its name.
pub const SCRIPTS: &str = "/run/pouch-hooks";

/// The hooks of a container; by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Before the program.
    pub prestart: Option<Command>,
    /// After the end.
    pub poststop: Option<Command>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// argv; never empty.
    pub args: Vec<String>,
    /// The operator's script that it is, by its name: below [`SCRIPTS`] in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Seconds it may run.
    pub timeout_s: u32,
    /// What its failure means.
    pub on_failure: OnFailure,
}

/// What a failed prestart hook means for the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    /// It fails, too.
    #[default]
    Fail,
    /// A warning in the log.
    Warn,
}

const POLICIES: [(&str, OnFailure); 2] = [("fail", OnFailure::Fail), ("warn", OnFailure::Warn)];

impl Hooks {
    /// What these annotations ask for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value that means nothing.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let hooks = [PRESTART, POSTSTOP];
        if !hooks.iter().any(|key| annotations.contains_key(*key)) {
            return match [TIMEOUT, FAILURE]
                .into_iter()
                .find(|key| annotations.contains_key(*key))
            {
                Some(key) => {
                    let why = format!("there is no hook: neither {PRESTART} nor {POSTSTOP}");
                    Err(Error::invalid(annotation(key), why))
                }
                None => Ok(Self::default()),
            };
        }
        let timeout_s = annotations
            .get(TIMEOUT)
            .map(|text| seconds(TIMEOUT, text, TIMEOUT_S_MAX));
        let timeout_s = timeout_s.transpose()?.unwrap_or(TIMEOUT_S);
        let on_failure = annotations.get(FAILURE).map(|word| policy(word));
        let on_failure = on_failure.transpose()?.unwrap_or_default();
        let command = |key: &str| match annotations.get(key) {
            Some(text) => {
                let (args, script) = words(&annotation(key), text)?;
                Ok(Some(Command {
                    args,
                    script,
                    timeout_s,
                    on_failure,
                }))
            }
            None => Ok(None),
        };
        Ok(Self {
            prestart: command(PRESTART)?,
            poststop: command(POSTSTOP)?,
        })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Command {
    /// The process that carries it out: root of the container in `/`, with the environment, the
    /// bounding set, the filter, the limits and the labels of its program.
    #[must_use]
    pub fn process(&self, program: &Process) -> Process {
        process(self.args.clone(), program)
    }
}

/// A process of the container's root in `/`, as [`Command::process`].
pub(super) fn process(args: Vec<String>, program: &Process) -> Process {
    let mut env = program.env.clone();
    ready::replace_socket(&mut env, None);
    Process {
        args,
        env,
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        umask: None,
        terminal: None,
        preserve_fds: 0,
        new_keyring: Toggle::Off,
        ..program.clone()
    }
}

/// The words of a hook, and the script of the host that it is.
fn words(field: &str, text: &str) -> Result<(Vec<String>, Option<String>)> {
    let Some(rest) = text.strip_prefix(OF_HOST) else {
        let other = format!(", nor {OF_HOST}NAME");
        return Ok((split(field, text, &other)?, None));
    };
    let name = rest.split_whitespace().next().unwrap_or_default();
    if !components::is_name(name) {
        let why = format!("{name:?} is no name of a script of the host's, as in host:prestart.sh");
        return Err(Error::invalid(field, why));
    }
    let args = arguments(field, &format!("{SCRIPTS}/{}", rest.trim_start()))?;
    Ok((args, Some(name.to_owned())))
}

/// The words of a command as an annotation has it; `field` says it.
pub(super) fn arguments(field: &str, text: &str) -> Result<Vec<String>> {
    split(field, text, "")
}

/// The same; a refusal tells of the other form that there is, too.
fn split(field: &str, text: &str, other: &str) -> Result<Vec<String>> {
    let refuse = |why: String| Err(Error::invalid(field, why));
    if text.len() > COMMAND_BYTES_MAX {
        let why = format!("{} bytes, and {COMMAND_BYTES_MAX} are the most", text.len());
        return refuse(why);
    }
    if text.contains('\0') {
        return refuse("has a NUL character".to_owned());
    }
    if let Some(script) = text.strip_prefix(INLINE) {
        if script.trim().is_empty() {
            return refuse(format!("nothing comes after {INLINE}"));
        }
        return Ok(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
    }
    if !text.starts_with('/') {
        let why = format!(
            "{text:?} is neither an absolute path in the container, with arguments, nor \
             {INLINE}COMMAND{other}"
        );
        return refuse(why);
    }
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn policy(word: &str) -> Result<OnFailure> {
    match POLICIES.iter().find(|(known, _)| *known == word) {
        Some((_, policy)) => Ok(*policy),
        None => {
            let hint = nearest(&POLICIES.map(|(word, _)| word), word).unwrap_or_default();
            let why = format!("{word:?} is neither fail nor warn: the nearest is {hint}");
            Err(Error::invalid(annotation(FAILURE), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(annotations: &[(&str, &str)]) -> Result<Hooks> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Hooks::of(&annotations.iter().map(own).collect())
    }

    #[track_caller]
    fn arguments_of(text: &str, expected: &[&str]) {
        let hooks = parse(&[(PRESTART, text)]).unwrap();
        assert_eq!(hooks.poststop, None);
        let command = hooks.prestart.unwrap();
        assert_eq!(command.args, expected);
        let rest = (command.timeout_s, command.on_failure);
        assert_eq!(rest, (30, OnFailure::Fail));
    }

    #[test]
    fn a_command_is_a_path_with_arguments_or_a_line_for_the_shell() {
        arguments_of("/opt/ops/pre.sh", &["/opt/ops/pre.sh"]);
        arguments_of("/opt/a  b\t'c d' \n", &["/opt/a", "b", "'c", "d'"]);
        arguments_of(
            "sh:echo 'a  b'; exit",
            &["/bin/sh", "-c", "echo 'a  b'; exit"],
        );
        arguments_of("sh:/x\n/y", &["/bin/sh", "-c", "/x\n/y"]);
        assert!(parse(&[]).unwrap().is_none());
    }

    #[test]
    fn a_script_of_the_host_is_named_and_never_a_path() {
        let hooks = parse(&[(PRESTART, "host: pre.sh  a b"), (POSTSTOP, "/x")]).unwrap();
        let prestart = hooks.prestart.unwrap();
        assert_eq!(prestart.args, ["/run/pouch-hooks/pre.sh", "a", "b"]);
        assert_eq!(prestart.script.as_deref(), Some("pre.sh"));
        assert_eq!(hooks.poststop.unwrap().script, None);
        for (text, name) in [
            ("host:/opt/x", "/opt/x"),
            ("host:../x", "../x"),
            ("host:", ""),
            ("host:.x", ".x"),
        ] {
            let why = "is no name of a script of the host's, as in host:prestart.sh";
            refused(
                &[(PRESTART, text)],
                &format!("annotations.{PRESTART}: {name:?} {why}"),
            );
        }
    }

    #[test]
    fn time_and_policy_are_of_both_hooks() {
        let hooks = parse(&[
            (PRESTART, "/a"),
            (POSTSTOP, "/b"),
            (TIMEOUT, "600"),
            (FAILURE, "warn"),
        ]);
        let hooks = hooks.unwrap();
        for command in [hooks.prestart, hooks.poststop].map(Option::unwrap) {
            let rest = (command.timeout_s, command.on_failure);
            assert_eq!(rest, (600, OnFailure::Warn));
        }
    }

    #[track_caller]
    fn refused(annotations: &[(&str, &str)], why: &str) {
        assert_eq!(parse(annotations).unwrap_err().to_string(), why);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (text, why) in [
            (
                "",
                "\"\" is neither an absolute path in the container, with arguments, nor sh:COMMAND, \
                 nor host:NAME",
            ),
            (
                "opt/x",
                "\"opt/x\" is neither an absolute path in the container, with arguments, nor \
                 sh:COMMAND, nor host:NAME",
            ),
            ("sh: \n", "nothing comes after sh:"),
            ("sh:a\0b", "has a NUL character"),
        ] {
            let expected = format!("annotations.{POSTSTOP}: {why}");
            refused(&[(POSTSTOP, text)], &expected);
        }
        let long = format!("sh:{}", "x".repeat(COMMAND_BYTES_MAX));
        let expected = format!("annotations.{PRESTART}: 16387 bytes, and 16384 are the most");
        refused(&[(PRESTART, &long)], &expected);
        for text in ["0", "601", "-1", "3s", "", "99999999999"] {
            let why =
                format!("annotations.{TIMEOUT}: {text:?} is no number of seconds from 1 to 600");
            refused(&[(PRESTART, "/a"), (TIMEOUT, text)], &why);
        }
        refused(
            &[(PRESTART, "/a"), (FAILURE, "wran")],
            "annotations.org.pouch.rich.hook-failure: \"wran\" is neither fail nor warn: the nearest \
             is warn",
        );
        refused(
            &[(TIMEOUT, "3")],
            "annotations.org.pouch.rich.hook-timeout: there is no hook: neither \
             org.pouch.rich.prestart nor org.pouch.rich.poststop",
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_command_or_an_error_of_one_line(text in "(sh:|host:|/)?(?s:.{0,40})") {
            match words(PRESTART, &text).map(|(args, _)| args) {
                Ok(args) => prop_assert!(args[0].starts_with('/')),
                Err(error) => prop_assert!(!error.to_string().contains('\n')),
            }
        }
    }
}
