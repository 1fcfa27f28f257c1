//! Old kernels by profile and other kernels by guest: the launchers themselves, and our binaries under them.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

use std::time::Duration;

use integration::{
    guest::{Guest, Series},
    process::{Finished, Running, command},
    profile::PROFILES,
    runtime::built,
    wait::SOON,
};

fn under(profile: &str, program: &[&str]) -> Finished {
    let mut launcher = command(env!("CARGO_BIN_EXE_kernel-profile"));
    Running::start(launcher.arg(profile).args(program))
        .unwrap()
        .finish(SOON)
        .unwrap()
}

#[test]
fn a_profile_answers_as_its_kernel() {
    let release = under("2.6.32", &["busybox", "uname", "-r"])
        .success()
        .unwrap()
        .stdout();
    assert!(release.starts_with("2.6."), "{release}");
    // setns(2) came with 3.0: nsenter needs it, and RHEL 6 had brought it back.
    let enter = ["nsenter", "--net=/proc/self/ns/net", "true"];
    let refused = under("2.6.32", &enter);
    assert!(
        refused.stderr().contains("Function not implemented"),
        "{refused}"
    );
    under("rhel6", &enter).success().unwrap();
    // unshare --user: user namespaces came with 3.8.
    assert!(
        under("3.2", &["unshare", "--user", "true"])
            .stderr()
            .contains("Invalid argument")
    );
    under("3.10", &["unshare", "--user", "true"])
        .success()
        .unwrap();
}

#[test]
fn every_binary_starts_under_every_profile() {
    for profile in PROFILES {
        for (binary, flag) in [
            ("containerd-shim-runlxc-v2", "-v"),
            ("runlxc", "--version"),
            ("runlxc-init", "--version"),
        ] {
            let binary = built(binary).unwrap();
            let ended = under(profile.name, &[binary.to_str().unwrap(), flag]).success();
            let shown = ended.unwrap().stdout();
            assert!(
                !shown.is_empty(),
                "{} under {}",
                binary.display(),
                profile.name
            );
        }
    }
}

/// Boots that kernel and expects it to be what it is called, on cgroup v2 alone.
fn check_guest(series: Series) {
    let script = "uname -r; stat -f -c %T /sys/fs/cgroup; runlxc --version > /dev/null && exit 5";
    let guest = Guest {
        series,
        payload: vec![built("runlxc").unwrap(), "/bin/busybox".into()],
        program: ["sh", "-c", script].map(str::to_owned).to_vec(),
        limit: Duration::from_secs(240),
    };
    let outcome = guest.run(|_| {}).unwrap();
    assert!(
        outcome.output.starts_with(&format!("{}.", series.number())),
        "{}",
        outcome.output
    );
    assert!(outcome.output.contains("cgroup2fs"), "{}", outcome.output);
    assert_eq!(outcome.code, 5, "{}", outcome.output);
}

#[test]
fn a_guest_runs_our_binary_on_kernel_5_10() {
    check_guest(Series::V5_10);
}

#[test]
fn a_guest_runs_our_binary_on_kernel_6_1() {
    check_guest(Series::V6_1);
}

#[test]
fn a_guest_runs_our_binary_on_kernel_6_12() {
    check_guest(Series::V6_12);
}

#[test]
fn a_guest_runs_our_binary_on_kernel_7_2() {
    check_guest(Series::V7_2);
}
