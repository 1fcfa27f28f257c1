//! The conformance suite itself, and snapshotters behind containerd: by stock overlayfs, by broken ones, by ours.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod conformance;
