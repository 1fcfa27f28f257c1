//! Finds the test program that has a named test, built by cargo if need be.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{command, output_of};

/// Building everything that a package's tests need.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// A test program that only lists its tests.
const LIST_LIMIT: Duration = Duration::from_secs(60);

/// What is asked for on a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The package, as cargo's `-p` has it.
    pub package: String,
    /// The test program, as cargo's `--test` has it; none: any of the package's.
    pub target: Option<String>,
    /// The test: its whole path, or the last part of it.
    pub name: String,
}

/// A test and the program that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTest {
    /// The program.
    pub program: PathBuf,
    /// The test's whole path, for `--exact`.
    pub name: String,
}

/// The part we need of a line that cargo prints for `--message-format=json`.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

impl Wanted {
    /// Builds the test programs and finds the test, which must be in one of them and no other.
    pub fn find(&self) -> Result<NamedTest> {
        let mut found = Vec::new();
        for program in self.build()? {
            let listed = output_of(command(&program).arg("--list"), LIST_LIMIT)?;
            found.extend(named(&listed, &self.name).map(|name| NamedTest {
                program: program.clone(),
                name: name.to_owned(),
            }));
        }
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => bail!("no test of {} is called {}", self.shown(), self.name),
            several => {
                let names: Vec<_> = several.iter().map(NamedTest::shown).collect();
                bail!(
                    "{} tests of {} are called {}, name one with its path or its program: {}",
                    several.len(),
                    self.shown(),
                    self.name,
                    names.join(", ")
                )
            }
        }
    }

    fn build(&self) -> Result<Vec<PathBuf>> {
        let mut cargo = command("cargo");
        cargo.args([
            "test",
            "--no-run",
            "--locked",
            "--quiet",
            "-p",
            &self.package,
        ]);
        cargo.arg("--message-format=json");
        if let Some(target) = &self.target {
            cargo.args(["--test", target]);
        }
        cargo.current_dir(workspace()?);
        let printed = output_of(&mut cargo, BUILD_LIMIT)?;
        executables(&printed)
    }

    fn shown(&self) -> String {
        match &self.target {
            Some(target) => format!("{} --test {target}", self.package),
            None => self.package.clone(),
        }
    }
}

impl NamedTest {
    fn shown(&self) -> String {
        let program = self.program.file_name().unwrap_or_default();
        format!("{} in {}", self.name, program.to_string_lossy())
    }
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("integration lies in the workspace")
}

/// The programs among what cargo tells that it has built.
fn executables(messages: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line)
            .with_context(|| format!("cargo printed what is no message: {line}"))?;
        found.extend(message.executable);
    }
    // Binaries of the package come along, and have no tests.
    found.retain(|path| path.components().any(|part| part.as_os_str() == "deps"));
    Ok(found)
}

/// The tests in a listing (`PATH: test`) that are called so.
fn named<'a>(listed: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let paths = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    paths.filter(move |path| *path == name || path.rsplit("::").next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_called_by_its_path_or_the_last_part_of_it() {
        let listed = "a::one: test\na::two: test\nb::one: test\nstep: benchmark\n\n3 tests\n";
        let named = |name| named(listed, name).collect::<Vec<_>>();
        assert_eq!(named("two"), ["a::two"]);
        assert_eq!(named("b::one"), ["b::one"]);
        assert_eq!(named("one"), ["a::one", "b::one"]);
        assert_eq!(named("on"), [""; 0]);
        assert_eq!(named("step"), [""; 0]);
    }

    #[test]
    fn test_programs_are_among_what_cargo_has_built() {
        let messages = r#"{"reason":"compiler-artifact","executable":null}
{"reason":"compiler-artifact","executable":"/t/debug/deps/host-12"}
{"reason":"compiler-artifact","executable":"/t/debug/runlxc"}
{"reason":"build-finished","success":true}"#;
        let expected = [PathBuf::from("/t/debug/deps/host-12")];
        assert_eq!(executables(messages).unwrap(), expected);
        assert!(executables("warning: no").is_err());
    }

    #[test]
    fn a_named_test_is_found_in_its_program() {
        let mut wanted = Wanted {
            package: "integration".to_owned(),
            target: Some("tidy".to_owned()),
            name: "unsafe_stands_in_sys_alone".to_owned(),
        };
        let found = wanted.find().unwrap();
        assert_eq!(found.name, wanted.name);
        wanted.name = "no_such_test".to_owned();
        let error = wanted.find().unwrap_err().to_string();
        assert_eq!(
            error,
            "no test of integration --test tidy is called no_such_test"
        );
    }
}
