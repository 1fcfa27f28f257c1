//! Where one case plays: a connection, a directory of its own, names nobody else has.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use proto::types::Mount;
use tempfile::TempDir;
use tonic::Status;

use super::{
    Snapshots, Target,
    client::Labels,
    mounting::{Mounted, mount_all},
    tree::{Change, apply},
};

/// What keeps containerd's garbage collection from a snapshot that nothing refers to.
pub(super) const ROOT_LABEL: &str = "containerd.io/gc.root";

/// Where one case plays.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) snapshots: Snapshots,
    pub(super) target: &'a Target,
    work: TempDir,
}

/// The labels every snapshot gets unless the case says otherwise.
pub(super) fn kept() -> Labels {
    BTreeMap::from([(ROOT_LABEL.to_owned(), "conformance".to_owned())])
}

impl<'a> Stage<'a> {
    pub(super) fn set(target: &'a Target) -> Result<Self> {
        let work = tempfile::Builder::new()
            .prefix("conformance-")
            .tempdir_in(&target.directory)
            .with_context(|| format!("making a directory in {}", target.directory.display()))?;
        Ok(Self {
            snapshots: Snapshots::connect(target)?,
            target,
            work,
        })
    }

    /// Removes the snapshots that are left, and the directory.
    pub(super) fn clear(self) -> Result<()> {
        self.snapshots.remove_made()?;
        let path = self.work.path().to_owned();
        self.work
            .close()
            .with_context(|| format!("removing {}", path.display()))
    }

    /// A path below the case's directory, which also serves as a key with slashes in it.
    pub(super) fn path(&self, name: &str) -> String {
        let path = self.work.path().join(name);
        path.to_str()
            .expect("a temporary directory's path is UTF-8")
            .to_owned()
    }

    /// A name without slashes.
    pub(super) fn name(&self, name: &str) -> String {
        let own = self.work.path().file_name().expect("it is no root");
        format!("{}-{name}", own.to_string_lossy())
    }

    /// True when a name is one of this case's.
    pub(super) fn owns(&self, name: &str) -> bool {
        name.starts_with(&self.path("")) || name.starts_with(&self.name(""))
    }

    /// Makes a directory.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.work.path().join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// A writable snapshot.
    pub(super) fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.snapshots.prepare(key, parent, kept())
    }

    /// A read-only snapshot.
    pub(super) fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.snapshots.view(key, parent, kept())
    }

    pub(super) fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.snapshots.commit(name, key, kept())
    }

    /// A writable snapshot, mounted at the path that is its key.
    pub(super) fn prepare_mounted(&self, name: &str, parent: &str) -> Result<(String, Mounted)> {
        let key = self.path(name);
        let mounts = self
            .prepare(&key, parent)
            .with_context(|| format!("Prepare of {key}"))?;
        let mounted = self.mount(&mounts, name)?;
        Ok((key, mounted))
    }

    /// Mounts what a snapshotter answered at a directory that is made for it.
    pub(super) fn mount(&self, mounts: &[Mount], name: &str) -> Result<Mounted> {
        ensure!(!mounts.is_empty(), "the answer has no mounts");
        mount_all(mounts, &self.directory(name)?)
    }

    /// A committed snapshot with those changes to its parent.
    pub(super) fn layer(&self, name: &str, parent: &str, changes: &[Change]) -> Result<String> {
        let prepared = format!("{name}-prepare");
        let (key, mounted) = self.prepare_mounted(&prepared, parent)?;
        apply(mounted.point(), changes)?;
        mounted.unmount()?;
        let committed = self.path(name);
        self.commit(&committed, &key)
            .with_context(|| format!("Commit of {key}"))?;
        Ok(committed)
    }
}
