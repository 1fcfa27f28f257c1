//! A daemon on a host with its store, asked as containerd's unpacker asks.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use integration::{
    conformance::{Labels, Mounted, Snapshots, mount_all},
    images::Image,
    skip::skip,
    snapshotter::{Setup, Snapshotter},
    store::{Served, Store},
};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};
use sys::Kernel;
use tonic::Code;

/// What containerd says of the layer that it is about to unpack.
pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";

pub(crate) struct Host {
    pub(crate) store: Store,
    pub(crate) address: String,
    pub(crate) served: Option<Served>,
    pub(crate) snapshotter: Snapshotter,
}

impl Host {
    /// With busybox in its store; `more` are further keys of `[store]`.
    pub(crate) fn start(more: &str) -> Result<Self> {
        Self::of(Store::with_images(&[Image::Busybox])?, more)
    }

    /// With that store, of whose images the first is asked for.
    pub(crate) fn of(store: Store, more: &str) -> Result<Self> {
        Self::at(store, more, None)
    }

    /// The same with its root there.
    pub(crate) fn at(store: Store, more: &str, root: Option<PathBuf>) -> Result<Self> {
        let served = store.serve()?;
        let config = store.config(&served.address) + more;
        Ok(Self {
            address: served.address.clone(),
            served: Some(served),
            snapshotter: Snapshotter::start(Setup {
                root,
                ..Setup::remote(&config)?
            })?,
            store,
        })
    }

    /// The store goes.
    pub(crate) fn stop_store(&mut self) -> Result<()> {
        self.served.take().context("it runs")?.stop()
    }

    /// The store comes back where it was.
    pub(crate) fn start_store(&mut self) -> Result<()> {
        self.served = Some(self.store.serve_at(&self.address)?);
        Ok(())
    }

    pub(crate) fn client(&self) -> Result<Snapshots> {
        Snapshots::connect(&self.snapshotter.target())
    }

    /// Asks for the layer of the first image: the committed snapshot that is found for it, or none when it is to be
    /// unpacked.
    pub(crate) fn pull(&self, key: &str) -> Result<Option<String>> {
        let client = self.client()?;
        let chain_id = &self.store.chain_ids[0];
        let labels = Labels::from([(TARGET.to_owned(), chain_id.clone())]);
        match client.prepare(key, "", labels) {
            Ok(_) => return Ok(None),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => bail!("{status}"),
        }
        let filter = format!("labels.\"{TARGET}\"==\"{chain_id}\",parent==\"\"");
        let found = client.list(&[filter])?;
        ensure!(found.len() == 1, "{found:?}");
        Ok(Some(found[0].name.clone()))
    }

    /// Makes a container's snapshot on that layer and mounts it.
    pub(crate) fn mount(&self, key: &str, parent: &str) -> Result<Mounted> {
        let mounts = self.client()?.prepare(key, parent, BTreeMap::new())?;
        let point = self.snapshotter.work().join(key);
        fs::create_dir_all(&point)?;
        mount_all(&mounts, &point)
    }

    pub(crate) fn remove(&self, keys: &[&str]) -> Result<()> {
        let client = self.client()?;
        for key in keys {
            client.remove(key).with_context(|| (*key).to_owned())?;
        }
        Ok(client.cleanup()?)
    }

    /// What is below its root of that kind: `disks`, `blobs`, `snapshots`.
    pub(crate) fn cached(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.snapshotter.root().join(kind))?;
        entries.map(|entry| Ok(entry?.path())).collect()
    }

    /// Nothing that the daemon has mounted is mounted any more.
    pub(crate) fn take_mounts_away(&self) -> Result<()> {
        for snapshot in self.cached("snapshots")? {
            match umount2(&snapshot.join("fs"), MntFlags::empty()) {
                // It is no disk.
                Err(Errno::EINVAL) | Ok(()) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.snapshotter.log_file())?)
    }

    /// Ends all of it, and looks for what is left; the store is there still.
    pub(crate) fn finish(self) -> Result<Store> {
        self.snapshotter.finish()?;
        self.served.map_or(Ok(()), Served::stop)?;
        Ok(self.store)
    }
}

/// A back end by which disks are fetched while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackEnd {
    /// By events.
    Lazy,
    /// By requests.
    Fuse,
}

impl BackEnd {
    /// As it is pinned.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Fuse => "fuse",
        }
    }

    /// Whether this kernel has it.
    pub(crate) fn is_there(self) -> bool {
        match self {
            Self::Lazy => has_pre_content(),
            Self::Fuse => has("5.16", (5, 16)),
        }
    }
}

/// Whether the kernel tells of reads, so that they can be answered one by one.
pub(crate) fn has_pre_content() -> bool {
    has("6.14", (6, 14))
}

fn has(shown: &str, (major, minor): (u32, u32)) -> bool {
    let has = Kernel::running().is_ok_and(|kernel| kernel.at_least(major, minor));
    if !has {
        let what = "remote_host: disks that are fetched while they are read";
        skip(what, &format!("the kernel is older than {shown}"));
    }
    has
}

/// Busybox itself, as it was put into the image.
pub(crate) fn program(mounted: &Mounted) -> Result<Vec<u8>> {
    Ok(fs::read(mounted.point().join("bin/busybox"))?)
}
