//! Old kernels by profile and other kernels by guest: the launchers themselves, and our binaries under them.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use integration::{
    guest::{Guest, Outcome, Series, WITH_SYSTEMD, systemds},
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
    let outcome = looked_at(series, None);
    assert_eq!(outcome.code, 5, "{}", outcome.output);
}

/// The same with a second disk, of which a script of tests/guests tells something more.
fn looked_at(series: Series, more: Option<(&Path, &str)>) -> Outcome {
    let mut script =
        "uname -r; stat -f -c %T /sys/fs/cgroup; runlxc --version > /dev/null && ".to_owned();
    let mut payload: Vec<PathBuf> = vec![built("runlxc").unwrap(), "/bin/busybox".into()];
    if let Some((_, name)) = more {
        script += &format!("sh /payload/{name} && ");
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests");
        let of_shim = ["containerd-shim-runlxc-v2", "runlxc-init"];
        payload.extend(of_shim.map(|binary| built(binary).unwrap()));
        payload.push(here.join(name));
    }
    let guest = Guest {
        series,
        payload,
        program: ["sh".to_owned(), "-c".to_owned(), script + "exit 5"].to_vec(),
        // A busy machine takes its time for each systemd.
        limit: Duration::from_secs(if more.is_some() { 900 } else { 240 }),
    };
    let disk = more.map(|(disk, _)| disk);
    let outcome = guest.run_beside(disk, "", |_| {}).unwrap();
    assert!(
        outcome.output.starts_with(&format!("{}.", series.number())),
        "{}",
        outcome.output
    );
    assert!(outcome.output.contains("cgroup2fs"), "{}", outcome.output);
    outcome
}

#[test]
fn a_guest_runs_our_binary_on_kernel_5_10() {
    check_guest(Series::V5_10);
}

/// Mode systemd of rich containers with three releases of it, on cgroup v2 alone.
#[test]
fn a_guest_runs_our_binary_and_images_of_three_systemds_on_kernel_6_1() {
    let disk = systemds().unwrap();
    let outcome = looked_at(Series::V6_1, Some((&disk, "systemds.sh")));
    assert_eq!(outcome.code, 5, "{}", outcome.output);
    for (suite, version) in WITH_SYSTEMD.into_iter().zip([247, 252, 257]) {
        let expected = format!(
            "== {suite}\nsystemd {version}\ndaemon\nsystemd\nactive\n\
             0::/system.slice/pouch-application.service\nup\nbye\ncode 7\n"
        );
        assert!(outcome.output.contains(&expected), "{}", outcome.output);
    }
}

#[test]
fn a_guest_runs_our_binary_on_kernel_6_12() {
    check_guest(Series::V6_12);
}

#[test]
fn a_guest_runs_our_binary_on_kernel_7_2() {
    check_guest(Series::V7_2);
}
