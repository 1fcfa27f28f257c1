//! What the stub makes of its arguments.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use sys::{ExitStatus, Spawn};

fn check(args: &[&str], expected: (&str, i32)) {
    let (output, theirs) = sys::pipe_cloexec().unwrap();
    let mut child = Spawn::new(Path::new(env!("CARGO_BIN_EXE_runlxc-init")))
        .args(args)
        .stdout(theirs.as_fd())
        .stderr(theirs.as_fd())
        .spawn()
        .unwrap();
    drop(theirs);
    let mut text = String::new();
    std::fs::File::from(output)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(
        (text.as_str(), child.wait().unwrap()),
        (expected.0, ExitStatus::Exited(expected.1))
    );
}

#[test]
fn the_version_is_told_and_anything_unknown_refused() {
    let version = concat!("runlxc-init ", env!("CARGO_PKG_VERSION"));
    let version = match option_env!("POUCH_REVISION") {
        Some(revision) => format!("{version} ({revision})\n"),
        None => format!("{version}\n"),
    };
    let usage = "runlxc-init: usage: runlxc-init init CONTROL_FD START_FD [AGENT_FD] | \
                 exec CONTROL_FD | --version; in a container: application | busybox-job | component NAME | \
                 end | halt | job | last | listening | power-off | stop | upstart-end\n";
    check(&["--version"], (&version, 0));
    // It would tell pid 1 to halt.
    let elsewhere = "runlxc-init: only a job of a container's init runs this\n";
    for word in [
        "application",
        "busybox-job",
        "halt",
        "last",
        "job",
        "listening",
        "power-off",
        "stop",
        "end",
    ] {
        check(&[word], (elsewhere, 255));
    }
    for args in [
        &[] as &[&str],
        &["init"],
        &["init", "3"],
        &["init", "3", "x"],
        &["init", "3", "4", "x"],
        &["init", "3", "4", "5", "6"],
        &["exec"],
        &["run"],
    ] {
        check(args, (usage, 2));
    }
    let bad = "runlxc-init: take over descriptor 77: bad file descriptor\n";
    check(&["exec", "77"], (bad, 255));
}
