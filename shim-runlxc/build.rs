//! Tells this crate, runlxc-init, and snapshotter-quota, which commit it is built from: `POUCH_REVISION` of the
//! environment, else what git says of the folder it lies in, else nothing.
#![expect(
    clippy::disallowed_methods,
    reason = "cargo runs this before the crate and reads what it prints"
)]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=POUCH_REVISION");
    // What changes with each commit and check-out. A missing file would mean a new build every time.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", file])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let given = std::env::var("POUCH_REVISION").ok();
    let revision = given
        .filter(|revision| !revision.is_empty())
        .or_else(|| git(&["rev-parse", "HEAD"]));
    if let Some(revision) = revision {
        println!("cargo::rustc-env=POUCH_REVISION={revision}");
    }
}

/// One line of git's; none without git, or outside of a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}
