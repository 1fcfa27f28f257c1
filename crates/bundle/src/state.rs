//! The OCI state of a container as JSON: for hooks on stdin and for the `state` command.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Version of the runtime specification whose terms we speak.
pub const OCI_VERSION: &str = "1.3.0";

/// `status` of the runtime specification (runtime.md, State), and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Between `create` and its end; what prestart, createRuntime and createContainer hooks see.
    Creating,
    /// Set up, program not started; what startContainer hooks see.
    Created,
    /// Program started; what poststart hooks see.
    Running,
    /// Frozen; not in the specification, but runc's word.
    Paused,
    /// Ended; what poststop hooks see.
    Stopped,
}

impl Status {
    /// The word of the specification.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The state of a container (runtime.md, State).
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    /// Version of the specification; see [`OCI_VERSION`].
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// Where in its life it is.
    pub status: Status,
    /// Host pid of its init; 0 is written for a stopped container, as runc does.
    pub pid: i32,
    /// Absolute path of the bundle.
    pub bundle: &'a Path,
    /// The annotations of config.json; left out when empty.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

impl State<'_> {
    /// One line of JSON without a line feed.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .expect("strings and numbers; the bundle's path was read as UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_specification() {
        let check = |status, pid, annotations: &[(&str, &str)], expected: &str| {
            let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
            let annotations = annotations.iter().map(own).collect();
            let state = State {
                oci_version: OCI_VERSION,
                id: "c\"1",
                status,
                pid,
                bundle: Path::new("/b"),
                annotations: &annotations,
            };
            assert_eq!(state.to_json(), expected);
        };
        check(
            Status::Creating,
            7,
            &[("k", "v")],
            r#"{"ociVersion":"1.3.0","id":"c\"1","status":"creating","pid":7,"bundle":"/b","annotations":{"k":"v"}}"#,
        );
        check(
            Status::Stopped,
            0,
            &[],
            r#"{"ociVersion":"1.3.0","id":"c\"1","status":"stopped","pid":0,"bundle":"/b"}"#,
        );
    }

    #[test]
    fn status_words_are_the_same_in_json() {
        for status in [
            Status::Creating,
            Status::Created,
            Status::Running,
            Status::Paused,
            Status::Stopped,
        ] {
            let json = serde_json::to_string(&status).unwrap();
            assert_eq!(json, format!("\"{}\"", status.as_str()));
        }
    }
}
