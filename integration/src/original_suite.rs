//! containerd's own test suite for snapshotters, built from its Go module: the judge of our port of it.
//!
//! It removes nothing of what it makes, so a snapshotter is asked once, with a fresh root.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    cache,
    conformance::{CASES, DirectoryRename, Target},
    golang,
    process::{Running, command},
    skip::skip,
    versions::Availability,
};

/// It waits for the next second a few times, and has a limit of its own of five minutes.
const LIMIT: Duration = Duration::from_secs(330);

/// What came out of each case.
pub type Outcomes = BTreeMap<String, Outcome>;

/// What came out of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All was as it should be.
    Passed,
    /// Something was not.
    Failed,
}

/// Every case must pass; told as skipped on a machine without Go.
///
/// # Panics
/// When one does not.
pub fn passes(target: &Target) -> Result<()> {
    match ask(target)? {
        Availability::Absent(why) => skip("containerd's own suite for snapshotters", &why),
        Availability::Ready(outcomes) => {
            let all = CASES.map(|case| (case.name.to_owned(), Outcome::Passed));
            assert_eq!(outcomes, all.into());
        }
    }
    Ok(())
}

/// Asks a snapshotter. Only on a machine with Go.
pub fn ask(target: &Target) -> Result<Availability<Outcomes>> {
    let Some(go) = golang::compiler() else {
        let why = "it is built from its Go module, and this machine has no Go";
        return Ok(Availability::Absent(why.to_owned()));
    };
    ensure!(
        target.namespace.is_none(),
        "the suite's proxy client names no namespace"
    );
    let directory = cache::entry("snapshot-suite-2.4.2.1", |into| {
        let source = include_str!("original_suite/main.go");
        let requirement = "github.com/containerd/containerd/v2 v2.4.2";
        golang::build_program(&go, &into.join("suite"), requirement, source)
    })?;
    let name = match target.directory_rename {
        DirectoryRename::Demanded => "snapshotter",
        DirectoryRename::LeftOut => "overlayfs",
    };
    let mut suite = command(directory.join("suite"));
    suite
        .arg(name)
        .arg(&target.socket)
        .arg(&target.snapshotter)
        .env("TMPDIR", &target.directory);
    let ended = Running::start(&mut suite)?.finish(LIMIT)?;
    let outcomes = parse(&ended.stdout());
    let has_failed = outcomes.values().any(|outcome| *outcome == Outcome::Failed);
    ensure!(
        !outcomes.is_empty() && (ended.code() == 0) != has_failed,
        "it ended before its end: {ended}"
    );
    Ok(Availability::Ready(outcomes))
}

/// `    --- PASS: Suite/Basic (0.02s)`
fn parse(text: &str) -> Outcomes {
    let line = |line: &str| {
        let (outcome, rest) = line.trim().strip_prefix("--- ")?.split_once(": Suite/")?;
        let outcome = match outcome {
            "PASS" => Outcome::Passed,
            "FAIL" => Outcome::Failed,
            _ => return None,
        };
        Some((rest.split(' ').next()?.to_owned(), outcome))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_from_what_go_prints() {
        let text = "=== RUN   Suite\n    log: --- nothing\n--- FAIL: Suite (1.00s)\n\
                    \x20   --- PASS: Suite/Basic (0.02s)\n    --- FAIL: Suite/Update (0.10s)\n";
        let expected = [("Basic", Outcome::Passed), ("Update", Outcome::Failed)];
        let expected = expected.map(|(name, outcome)| (name.to_owned(), outcome));
        assert_eq!(parse(text), Outcomes::from(expected));
    }
}
