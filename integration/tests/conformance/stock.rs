//! Stock containerd's overlayfs passes, of every version; and the command says so, or what failed.

use std::{fs, time::Duration};

use integration::{
    config::Config,
    conformance::CASES,
    containerd::Containerd,
    process::{Finished, Running, command},
    versions::{Installed, Version},
};

use super::{failures, overlayfs_of};

const LIMIT: Duration = Duration::from_secs(300);

/// The version, unless this machine has not got it, which was reported as skipped.
fn installed(version: Version) -> Option<Installed> {
    let all = Version::available().unwrap();
    all.into_iter().find(|found| found.version == version)
}

fn check(version: Version) {
    let Some(installed) = installed(version) else {
        return;
    };
    let containerd = Containerd::start(&installed, &Config::with_images(&[])).unwrap();
    let failures = failures(&overlayfs_of(&containerd), &CASES);
    assert!(failures.is_empty(), "{failures:#?}");
    containerd.finish().unwrap();
}

#[test]
fn overlayfs_of_containerd_1_6_conforms() {
    check(Version::V1_6);
}

#[test]
fn overlayfs_of_containerd_1_7_conforms() {
    check(Version::V1_7);
}

#[test]
fn overlayfs_of_containerd_2_4_conforms() {
    check(Version::V2_4);
}

fn conformance(containerd: &Containerd, more: &[&str]) -> Finished {
    let mut program = command(env!("CARGO_BIN_EXE_snapshot-conformance"));
    program
        .args(["--snapshotter", "overlayfs", "--address"])
        .arg(containerd.address())
        .arg("--directory")
        .arg(containerd.work())
        .args(more);
    Running::start(&mut program).unwrap().finish(LIMIT).unwrap()
}

#[test]
fn the_command_prints_a_line_for_each_case_and_exits_by_what_came_out() {
    let Some(installed) = installed(Version::V1_6) else {
        return;
    };
    let containerd = Containerd::start(&installed, &Config::with_images(&[])).unwrap();
    let namespace = ["--namespace", &containerd.namespace];
    let asked = [&namespace[..], &["--filter", "stat"]].concat();
    conformance(&containerd, &asked)
        .success()
        .unwrap()
        .printing("passed StatActive\npassed StatComitted\npassed StatInWalk\n3 passed, 0 failed")
        .unwrap();

    // containerd's own socket wants a namespace.
    let ended = conformance(&containerd, &["--filter", "Remove"]);
    let ended = ended.with_code(1).unwrap();
    assert!(ended.stdout().contains("FAILED Remove: "), "{ended}");
    assert!(ended.stdout().contains("namespace is required"), "{ended}");

    // Directories of lower layers are renamed unless that is left out.
    let kernel = fs::read_to_string("/sys/module/overlay/parameters/redirect_dir").unwrap();
    let can_rename = matches!(kernel.trim(), "Y" | "on");
    let asked = [&namespace[..], &["--filter", "rename"]].concat();
    let ended = conformance(&containerd, &asked);
    ended.with_code(i32::from(!can_rename)).unwrap();
    let asked = [&asked[..], &["--keep-directories"]].concat();
    conformance(&containerd, &asked).success().unwrap();
    containerd.finish().unwrap();
}
