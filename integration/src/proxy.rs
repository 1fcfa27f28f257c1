//! A snapshotter behind containerd: what containerd's configuration says of it. Text only; it starts nothing.

use std::path::PathBuf;

use crate::versions::Version;

/// A snapshotter that containerd calls through a socket.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// What clients name it.
    pub name: String,
    /// Its socket.
    pub address: PathBuf,
    /// Its root, which containerd tells Kubernetes for disk usage (from 1.6.32, 1.7.16 and 2.0 on;
    /// older ones read over it).
    pub root: PathBuf,
    /// Whether its mounts map the layers to a container's user namespace; containerd 2.x is told.
    pub maps_layers: bool,
}

/// The tables of all of them.
pub(crate) fn tables(proxies: &[Proxy], version: Version) -> String {
    let mut text: String = proxies.iter().map(|proxy| proxy.table(version)).collect();
    if version == Version::V2_4 && !proxies.is_empty() {
        // What unpacks for imports and CRI knows only the snapshotters named here.
        let names = std::iter::once("overlayfs").chain(proxies.iter().map(|p| p.name.as_str()));
        let transfer = "plugins.\"io.containerd.transfer.v1.local\"";
        text.extend(names.map(|name| {
            format!(
                "\n[[{transfer}.unpack_config]]\n  platform = \"linux/{}\"\n  snapshotter = \"{name}\"\n",
                std::env::consts::ARCH
            )
        }));
    }
    text
}

impl Proxy {
    fn table(&self, version: Version) -> String {
        let Self {
            name,
            address,
            root,
            maps_layers,
        } = self;
        let capabilities = if *maps_layers && version == Version::V2_4 {
            "  capabilities = [\"remap-ids\"]\n"
        } else {
            ""
        };
        format!(
            "\n[proxy_plugins.\"{name}\"]\n  type = \"snapshot\"\n  address = \"{}\"\n{capabilities}\
             \n[proxy_plugins.\"{name}\".exports]\n  root = \"{}\"\n",
            address.display(),
            root.display()
        )
    }
}
