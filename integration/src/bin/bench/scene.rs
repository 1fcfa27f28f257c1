//! Where snapshots are measured: one disk with both snapshotters on it, behind one containerd.
//!
//! The disk is an ext4 with project quota where the machine's kernel has that, else a btrfs, whose
//! quota every kernel since 6.7 has. containerd's own metadata lies in memory: each request to
//! either snapshotter pays for two transactions of it, and its syncs would hide what the
//! snapshotters do.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use anyhow::{Context, Result};
use integration::{
    config::Config,
    conformance::{Snapshots, Target},
    containerd::Containerd,
    disk::Disk,
    snapshotter::{Setup, Snapshotter},
    versions::Installed,
};

/// All trees of one run fit.
const DISK_BYTES: u64 = 6 << 30;

/// As many layers as images commonly have.
pub(crate) const LAYERS: usize = 8;

/// The top of the layers that all snapshots stand on.
pub(crate) const PARENT: &str = "layer-7";

/// Both snapshotters, ready, each with the same layers.
pub(crate) struct Scene {
    pub(crate) containerd: Containerd,
    pub(crate) quota: Snapshotter,
    /// What the disk is, and so the back end of ours.
    pub(crate) kind: &'static str,
    metrics: PathBuf,
    /// Goes last: both are on it.
    disk: Disk,
}

/// The labels of a container's snapshot: kept by containerd, limited by ours. Stock's reads none.
pub(crate) fn labels(size_bytes: u64) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("containerd.io/gc.root".to_owned(), "bench".to_owned()),
        (MAX_SIZE.to_owned(), size_bytes.to_string()),
    ])
}

/// The label that asks for a limit.
pub(crate) const MAX_SIZE: &str = "containerd.io/snapshot/max-size";

impl Scene {
    pub(crate) fn set(installed: &Installed) -> Result<Self> {
        let (disk, kind) = disk()?;
        let metrics = disk.beside().join("metrics");
        let setup = Setup::quota(&format!(
            "[backend]\nkind = \"{kind}\"\n[metrics]\naddress = \"unix:{}\"\n",
            metrics.display()
        ))?;
        let quota = Snapshotter::start(Setup {
            root: Some(disk.path().join("quota")),
            ..setup
        })?;
        let overlayfs = disk.path().join("overlayfs");
        let containerd = Containerd::start(
            installed,
            &Config {
                proxies: vec![quota.proxy()],
                is_in_memory: true,
                extra: format!(
                    "\n[plugins.\"io.containerd.snapshotter.v1.overlayfs\"]\n  root_path = \"{}\"\n",
                    overlayfs.display()
                ),
                ..Config::with_images(&[])
            },
        )?;
        let scene = Self {
            containerd,
            quota,
            kind,
            metrics,
            disk,
        };
        for side in [Side::Stock, Side::Ours] {
            scene.layers(&scene.open(side)?)?;
        }
        Ok(scene)
    }

    fn layers(&self, snapshots: &Snapshots) -> Result<()> {
        let mut parent = String::new();
        for number in 0..LAYERS {
            let (key, name) = (format!("layer-{number}-made"), format!("layer-{number}"));
            snapshots.prepare(&key, &parent, labels(1 << 30))?;
            snapshots.commit(&name, &key, labels(1 << 30))?;
            parent = name;
        }
        Ok(())
    }

    /// A snapshotter through containerd.
    pub(crate) fn target(&self, side: Side) -> Target {
        Target {
            namespace: Some(self.containerd.namespace.clone()),
            directory: self.containerd.work(),
            ..Target::proxy(self.containerd.address(), side.name())
        }
    }

    /// A connection to a snapshotter through containerd.
    pub(crate) fn open(&self, side: Side) -> Result<Snapshots> {
        Snapshots::connect(&self.target(side))
    }

    /// Writes out what either side left to be written.
    pub(crate) fn sync(&self) -> Result<()> {
        let disk = std::fs::File::open(self.disk.path())?;
        nix::unistd::syncfs(disk).context("syncing the disk")
    }

    /// How often our store was synced.
    pub(crate) fn store_syncs(&self) -> Result<f64> {
        let mut stream = UnixStream::connect(&self.metrics)
            .with_context(|| format!("connecting to {}", self.metrics.display()))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("snapshotter_quota_store_syncs_total "));
        let value = value.context("no store_syncs_total among the metrics")?;
        value.parse().context("a number")
    }

    /// Ends both. Their snapshots go with the disk.
    pub(crate) fn clear(self) -> Result<()> {
        self.containerd.finish()?;
        self.quota.finish()
    }
}

/// A kernel without project quota is found out on a small one.
fn disk() -> Result<(Disk, &'static str)> {
    // A discard would punch a hole into the file below, to be filled again by the next write there.
    let (project, options) = (["-q", "-O", "project,quota"], "prjquota,nodiscard");
    if Disk::sparse("ext4", 1 << 30, &project, options).is_ok() {
        let disk = Disk::allocated("ext4", DISK_BYTES, &project, options)?;
        return Ok((disk, "prjquota"));
    }
    let disk = Disk::allocated("btrfs", DISK_BYTES, &["-q"], "nodiscard")?;
    Ok((disk, "btrfs"))
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Stock,
    Ours,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Stock, Self::Ours];

    /// What containerd calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stock => "overlayfs",
            Self::Ours => "quota",
        }
    }
}
