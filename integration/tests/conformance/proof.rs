//! Each thing a snapshotter may do wrong fails the cases that look at it, and no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use integration::{
    config::Config,
    conformance::{CASES, Case, DirectoryRename, Target},
    containerd::Containerd,
    original_suite::{self, Outcome},
    skip::skip,
    versions::{Availability, Version},
};

use super::{
    failures,
    faults::{FAULTS, Fault},
    relay::Relay,
};

/// The limit of the one call that is never answered.
const UNANSWERED: Duration = Duration::from_secs(3);

/// How many faults are tried beside each other.
const THREADS: usize = 3;

fn target_for(relay: &Relay, fault: Fault, case: &Case) -> Target {
    let mut target = relay.target();
    match fault {
        Fault::ListsHoldUpStats if case.name == "StatInWalk" => target.limit = UNANSWERED,
        Fault::DirectoriesCanBeRenamed | Fault::DirectoriesCannotBeRenamed => {
            target.directory_rename = DirectoryRename::Demanded;
        }
        _ => {}
    }
    target
}

/// What is not as it should be with that fault; nothing when all is.
fn wrong(containerd: &Containerd, fault: Fault, expected: &[&str]) -> Option<String> {
    let relay = Relay::start(containerd, fault);
    let mut said = BTreeMap::new();
    for case in CASES {
        // It takes seconds, and asks for nothing that these faults concern.
        if case.name == "128LayersMount" && !fault.is_of_layers() {
            continue;
        }
        relay.forget_clients();
        said.extend(failures(&target_for(&relay, fault, &case), &[case]));
    }
    let is_right = said.keys().eq(expected);
    (!is_right).then(|| format!("{fault:?}: expected {expected:?}, got {said:#?}\n"))
}

#[test]
fn each_fault_fails_the_cases_that_look_at_it_and_no_other() {
    let installed = Version::available().unwrap();
    let config = Config {
        is_in_memory: true,
        ..Config::with_images(&[])
    };
    let containerd = Containerd::start(&installed[0], &config).unwrap();
    let faults = Mutex::new(FAULTS.iter());
    let next = || faults.lock().unwrap().next();
    let try_faults = || -> String {
        std::iter::from_fn(next)
            .filter_map(|(fault, expected)| wrong(&containerd, *fault, expected))
            .collect()
    };
    let wrong: String = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(try_faults)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(wrong.is_empty(), "{wrong}");
    containerd.finish().unwrap();
}

#[test]
fn every_case_is_failed_by_a_fault() {
    let failed: BTreeSet<_> = FAULTS.iter().flat_map(|(_, cases)| *cases).collect();
    let untried: Vec<_> = CASES
        .iter()
        .map(|case| case.name)
        .filter(|name| !failed.contains(name))
        .collect();
    assert!(untried.is_empty(), "nothing fails {untried:?}");
}

/// With every fault it takes minutes; the table above was compared with what it says once.
#[test]
fn the_original_suite_agrees() {
    let installed = Version::available().unwrap();
    for (fault, expected) in [
        (Fault::Nothing, &[][..]),
        (Fault::UpdatesLoseALabel, &["Update"]),
    ] {
        let config = Config {
            is_in_memory: true,
            ..Config::with_images(&[])
        };
        let containerd = Containerd::start(&installed[0], &config).unwrap();
        let relay = Relay::start(&containerd, fault);
        match original_suite::ask(&relay.target()).unwrap() {
            Availability::Absent(why) => skip("containerd's own suite for snapshotters", &why),
            Availability::Ready(outcomes) => {
                let failed = outcomes
                    .iter()
                    .filter(|(_, outcome)| **outcome == Outcome::Failed);
                let failed: Vec<_> = failed.map(|(name, _)| name.as_str()).collect();
                assert_eq!(failed, expected);
                let names: BTreeSet<_> = outcomes.keys().map(String::as_str).collect();
                assert_eq!(names, CASES.iter().map(|case| case.name).collect());
            }
        }
        drop(relay);
        containerd.finish().unwrap();
    }
}
