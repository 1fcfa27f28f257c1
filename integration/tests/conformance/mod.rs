//! The suite is proved in both directions: what is right passes, and each thing that is wrong fails
//! the cases it must fail and no other.

mod behind;
mod faults;
mod limited;
mod operators;
mod proof;
mod quota;
mod relay;
mod stock;

use std::time::Duration;

use integration::{
    conformance::{Case, DirectoryRename, Target},
    containerd::Containerd,
    guest::{Guest, Series},
};

/// The size of a file system for one test, in a sparse file.
const DISK_BYTES: u64 = 4 << 30;

/// containerd's own overlayfs through containerd's own socket. Its metadata layer stands before it:
/// names are per namespace, and its garbage collection takes what nothing refers to, from which the
/// suite's root label keeps it. No case comes out differently for that. What this cannot see is
/// what the metadata layer answers by itself, as refusing the removal of a parent.
fn overlayfs_of(containerd: &Containerd) -> Target {
    Target {
        namespace: Some(containerd.namespace.clone()),
        directory: containerd.work(),
        directory_rename: DirectoryRename::LeftOut,
        ..Target::proxy(containerd.address(), "overlayfs")
    }
}

/// The names of the cases that fail, each with what it said.
fn failures(target: &Target, cases: &[Case]) -> Vec<(&'static str, String)> {
    cases
        .iter()
        .filter_map(|case| Some((case.name, format!("{:#}", case.run(target).err()?))))
        .collect()
}

/// Whether this program runs in a guest, where what came along lies in a place of its own.
fn is_in_guest() -> bool {
    std::env::current_exe().unwrap().starts_with("/payload")
}

/// Runs one test of this program in a guest.
fn again_in_guest(series: Series, name: &str, limit: Duration) {
    let program = std::env::current_exe().unwrap();
    let words = vec![name.to_owned(), "--exact".to_owned()];
    let guest = Guest::running(series, &program, words, limit).unwrap();
    let outcome = guest.run(|_| {}).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.output);
    assert!(outcome.output.contains("1 passed"), "{}", outcome.output);
}
