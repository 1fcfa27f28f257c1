//! nerdctl on one containerd instance, in a network namespace of its own.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use crate::{
    containerd::Containerd,
    network::{CNI_PLUGINS, NetworkNamespace},
    process::{Finished, Running},
    runtime::Runtime,
};

/// A pull-less run of a small image takes well under a second.
const LIMIT: Duration = Duration::from_secs(60);

/// A nerdctl that talks to one containerd.
#[derive(Debug)]
pub struct Nerdctl<'a> {
    binary: PathBuf,
    containerd: &'a Containerd,
    network: &'a NetworkNamespace,
    data: PathBuf,
}

impl<'a> Nerdctl<'a> {
    /// Its data lies below the instance's own directory. The instance should run in `network` too,
    /// for hooks inherit the shim's namespace.
    pub fn new(
        binary: PathBuf,
        containerd: &'a Containerd,
        network: &'a NetworkNamespace,
    ) -> Result<Self> {
        let data = containerd.work().join("nerdctl");
        fs::create_dir_all(data.join("net.d")).context("making nerdctl's directories")?;
        Ok(Self {
            binary,
            containerd,
            network,
            data,
        })
    }

    /// Runs `nerdctl ARGUMENTS`.
    pub fn call(&self, arguments: &[&str]) -> Result<Finished> {
        let mut nerdctl = self.network.command(&self.binary);
        nerdctl
            .arg("--address")
            .arg(self.containerd.address())
            .args([
                "--namespace",
                &self.containerd.namespace,
                "--snapshotter",
                "overlayfs",
            ])
            .arg("--data-root")
            .arg(self.data.join("data"))
            .arg("--cni-netconfpath")
            .arg(self.data.join("net.d"))
            .args(["--cni-path", CNI_PLUGINS])
            .args(arguments)
            .env("NERDCTL_TOML", self.data.join("none.toml"));
        Running::start(&mut nerdctl)?.finish(LIMIT)
    }

    /// `nerdctl run --runtime R ARGUMENTS`; the container's name is noted for the census.
    pub fn run(&self, runtime: Runtime, name: &str, arguments: &[&str]) -> Result<Finished> {
        let mut all = vec!["run", "--runtime", runtime.name(), "--name", name];
        all.extend_from_slice(arguments);
        self.call(&all)
    }
}
