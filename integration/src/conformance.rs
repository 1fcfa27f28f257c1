//! containerd's test suite for snapshotters, asked of any snapshotter through its socket.
//!
//! These are the 21 cases of containerd's core/snapshots/testsuite (the same list from 1.6 to
//! 2.4), under its names, misspelt ones too, so that results can be laid side by side. What is
//! mounted is mounted as containerd mounts it, written to and compared.
//!
//! Where this differs from the Go suite: there a snapshotter gets a fresh root for each case; here
//! it may be one that is in use, so every name is the case's own, what it does not own it does not
//! look at, and what it made it removes. Files get the mode they are asked for whatever the umask,
//! where the Go suite clears its own.

mod basics;
mod client;
mod layers;
mod mounting;
mod queries;
mod stage;
mod tree;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use crate::wait::SOON;

pub use client::{Labels, Snapshots};
pub use mounting::{Mounted, mount_all};
use stage::Stage;

/// The snapshotter to be asked.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its socket.
    pub socket: PathBuf,
    /// What requests name it; most daemons serve one and do not look at it.
    pub snapshotter: String,
    /// The containerd namespace, for containerd's own socket; a proxy snapshotter needs none.
    pub namespace: Option<String>,
    /// Where directories to mount at are made.
    pub directory: PathBuf,
    /// Whether it must be possible to rename directories of lower layers.
    pub directory_rename: DirectoryRename,
    /// The limit of one call.
    pub limit: Duration,
}

/// overlayfs without `redirect_dir` answers EXDEV to the rename of a lower layer's directory. The
/// Go suite leaves that step out for snapshotters named overlayfs, fuse-overlayfs and erofs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryRename {
    /// It must work.
    Demanded,
    /// It is not tried.
    LeftOut,
}

/// One case of the suite.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the Go suite.
    pub name: &'static str,
    steps: fn(&Stage<'_>) -> Result<()>,
}

/// The suite, in the order of the Go suite.
pub const CASES: [Case; 21] = [
    case("Basic", basics::basic),
    case("StatActive", basics::stat_active),
    case("StatComitted", basics::stat_committed),
    case("TransitivityTest", basics::transitivity),
    case("PreareViewFailingtest", basics::keys_in_use),
    case("Update", queries::update),
    case("Remove", basics::remove),
    case("Walk", queries::walk),
    case("LayerFileupdate", layers::file_update),
    case("RemoveDirectoryInLowerLayer", layers::replaced_directory),
    case("Chown", layers::chown),
    case("DirectoryPermissionOnCommit", layers::directory_permission),
    case("RemoveIntermediateSnapshot", basics::remove_intermediate),
    case("DeletedFilesInChildSnapshot", layers::deleted_files),
    case("MoveFileFromLowerLayer", layers::moved_file),
    case("ViewReadonly", basics::view_is_read_only),
    case("StatInWalk", queries::stat_in_walk),
    case("CloseTwice", basics::close_twice),
    case("RootPermission", basics::root_permission),
    case("Rename", layers::rename),
    case("128LayersMount", layers::many_layers),
];

const fn case(name: &'static str, steps: fn(&Stage<'_>) -> Result<()>) -> Case {
    Case { name, steps }
}

impl Target {
    /// A proxy snapshotter at its own socket, of which everything is demanded.
    #[must_use]
    pub fn proxy(socket: PathBuf, snapshotter: &str) -> Self {
        Self {
            socket,
            snapshotter: snapshotter.to_owned(),
            namespace: None,
            directory: std::env::temp_dir(),
            directory_rename: DirectoryRename::Demanded,
            limit: SOON,
        }
    }
}

impl Case {
    /// Runs it. What it made is removed again, whatever comes out.
    pub fn run(&self, target: &Target) -> Result<()> {
        let stage = Stage::set(target)?;
        let outcome = (self.steps)(&stage);
        let cleared = stage.clear().context("removing what the case made");
        outcome.and(cleared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_are_those_of_the_go_suite_each_once() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 21);
    }
}
