//! The back ends of snapshotter-quota on real kernels, in guests: project quota, which this machine's
//! kernel need not have, and btrfs with either kind of quota.
//!
//! What is asked is in snapshotter-quota/tests.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's own functions, and their figures"
)]

use std::time::Duration;

use integration::guest::{Guest, Series, Wanted};

/// Which tests of a test program.
enum Which<'a> {
    /// Those of the program that has this one, two at a time: so many processors has the guest.
    AllBeside(&'a str),
    /// Those of the program that has this one, one at a time: they measure, and print the lines in
    /// which something `was heard`.
    AllBesideInTurn(&'a str),
    /// This one.
    Only(&'a str),
}

fn check(series: Series, target: &str, which: &Which<'_>) {
    let (name, arguments) = match which {
        Which::AllBeside(name) => (*name, vec!["--test-threads=2".to_owned()]),
        Which::AllBesideInTurn(name) => {
            let flags = ["--test-threads=1", "--nocapture"].map(str::to_owned);
            (*name, flags.to_vec())
        }
        Which::Only(name) => (*name, vec!["--exact".to_owned(), (*name).to_owned()]),
    };
    let wanted = Wanted {
        package: "snapshotter-quota".to_owned(),
        target: Some(target.to_owned()),
        name: name.to_owned(),
    };
    let program = wanted.find().unwrap().program;
    let name = program.file_name().unwrap().to_str().unwrap();
    let guest = Guest {
        series,
        program: [vec![format!("/payload/{name}")], arguments].concat(),
        payload: vec![program],
        limit: Duration::from_secs(1200),
    };
    let outcome = guest
        .run(|line| {
            if line.contains("was heard") {
                println!("{series:?}: {line}");
            }
        })
        .unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.output);
    let is_one_run = outcome.output.contains(" 0 failed; 0 ignored;");
    let is_empty = outcome.output.contains(" 0 passed;");
    assert!(is_one_run && !is_empty, "{}", outcome.output);
}

const PROJECT_QUOTA: Which<'_> = Which::AllBeside("limit_holds_and_all_can_be_deleted");

/// Without quotactl_fd(2).
#[test]
fn project_quota_holds_on_kernel_5_10() {
    check(Series::V5_10, "project_quota", &PROJECT_QUOTA);
}

#[test]
fn project_quota_holds_on_kernel_6_1() {
    check(Series::V6_1, "project_quota", &PROJECT_QUOTA);
}

#[test]
fn project_quota_holds_on_kernel_6_12() {
    check(Series::V6_12, "project_quota", &PROJECT_QUOTA);
}

const EVENTS: Which<'_> = Which::AllBesideInTurn("a_refused_write_is_an_event_within_milliseconds");

#[test]
fn limits_are_told_by_kernel_5_10() {
    check(Series::V5_10, "watch_kernel", &EVENTS);
}

#[test]
fn limits_are_told_by_kernel_6_1() {
    check(Series::V6_1, "watch_kernel", &EVENTS);
}

#[test]
fn limits_are_told_by_kernel_6_12() {
    check(Series::V6_12, "watch_kernel", &EVENTS);
}

#[test]
fn simple_quota_of_btrfs_holds_on_kernel_6_12() {
    let all = Which::AllBeside("limit_holds_and_all_can_be_deleted");
    check(Series::V6_12, "btrfs", &all);
}

/// Without simple quota.
#[test]
fn classic_quota_of_btrfs_holds_on_kernel_6_1() {
    let one = Which::Only("quota_of_a_user_keeps_its_mode_and_is_used");
    check(Series::V6_1, "btrfs", &one);
}
