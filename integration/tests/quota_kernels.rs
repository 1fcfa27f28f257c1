//! Project quota of ext4 and xfs, its events, and btrfs' quota, on real kernels in guests.
//!
//! What is asked is in the program `quota-checks`: this machine's kernel need not have quota.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

use std::time::Duration;

use integration::guest::{Guest, Series};

fn check(series: Series) {
    let guest = Guest {
        series,
        payload: vec![env!("CARGO_BIN_EXE_quota-checks").into()],
        program: vec!["/payload/quota-checks".to_owned()],
        limit: Duration::from_secs(600),
    };
    let outcome = guest.run(|_| {}).unwrap();
    let kept = outcome
        .output
        .lines()
        .filter(|line| line.starts_with("ok: "))
        .count();
    assert_eq!(outcome.code, 0, "{}", outcome.output);
    assert!(kept >= 29, "only {kept} were asked: {}", outcome.output);
}

/// Without quotactl_fd(2): the device is named.
#[test]
fn quota_holds_on_kernel_5_10() {
    check(Series::V5_10);
}

#[test]
fn quota_holds_on_kernel_6_1() {
    check(Series::V6_1);
}

/// With btrfs' simple quota.
#[test]
fn quota_holds_on_kernel_6_12() {
    check(Series::V6_12);
}
