//! The text of a containerd configuration file for one instance. A pure function; it reads and writes nothing.

use std::{ffi::OsString, fmt::Write as _, path::PathBuf};

use crate::{
    images::Image,
    proxy::{self, Proxy},
    runtime::Runtime,
    tag::Directories,
    versions::Version,
};

/// What an instance is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The images it has from the start.
    pub images: Vec<Image>,
    /// Kubernetes' interface.
    pub cri: Cri,
    /// The snapshotters behind it.
    pub proxies: Vec<Proxy>,
    /// Text put after the rest: further tables.
    pub extra: String,
    /// Files that are merged into it, as packaged drop-ins are.
    pub imports: Vec<PathBuf>,
    /// Environment variables of the daemon beside the harness's own.
    pub environment: Vec<(String, String)>,
    /// The network namespace it and its shims run in; none: this program's.
    pub network: Option<PathBuf>,
    /// A program with its first arguments that becomes containerd, such as a kernel profile's; empty: none.
    pub launcher: Vec<OsString>,
    /// Where our binaries lie; none: where this workspace was built.
    pub binaries: Option<PathBuf>,
    /// Whether its root is a tmpfs: for tests that make very many snapshots and pull no cable.
    pub is_in_memory: bool,
}

/// Whether containerd serves Kubernetes' interface.
#[derive(Debug, Clone)]
pub enum Cri {
    /// No: its plug-ins are off, which starts faster.
    Off,
    /// Yes, with what has no useful default here.
    On(CriOptions),
    /// Yes, with what `extra` and `imports` say of it, as an operator's file would.
    Bare,
}

/// What the CRI plug-in is told.
#[derive(Debug, Clone)]
pub struct CriOptions {
    /// The runtime of pods that name none.
    pub default_runtime: Runtime,
    /// Image of the pause container.
    pub sandbox_image: String,
    /// Where CNI plug-ins lie.
    pub cni_plugins: String,
    /// Where CNI network lists lie.
    pub cni_networks: String,
    /// What makes the roots of containers.
    pub snapshotter: String,
}

/// The handler of runv's pods that have no sandbox container: containerd 2.x asks the shim for the sandbox.
pub const RUNV_BY_SHIM: &str = "runv-shim";

/// Plug-ins nobody here uses: other snapshotters, directories outside the instance, tracing.
const UNUSED: &[&str] = &[
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.tracing.processor.v1.otlp",
];

const CRI_PLUGINS: &[&str] = &[
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
];

/// Its socket would be outside the instance.
const NO_NRI: &str = "\n[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n";

impl Config {
    /// An instance with these images and nothing else.
    #[must_use]
    pub fn with_images(images: &[Image]) -> Self {
        Self {
            images: images.to_vec(),
            cri: Cri::Off,
            proxies: Vec::new(),
            extra: String::new(),
            imports: Vec::new(),
            environment: Vec::new(),
            network: None,
            launcher: Vec::new(),
            binaries: None,
            is_in_memory: false,
        }
    }

    /// The configuration file.
    #[must_use]
    pub fn text(&self, version: Version, directories: &Directories) -> String {
        let cri_is_off = matches!(self.cri, Cri::Off);
        let disabled: Vec<_> = UNUSED
            .iter()
            .chain(CRI_PLUGINS.iter().filter(|_| cri_is_off))
            .map(|name| format!("  \"{name}\",\n"))
            .collect();
        let mut text = format!(
            "version = {}\nimports = {:?}\nroot = \"{}\"\nstate = \"{}\"\ntemp = \"{}\"\ndisabled_plugins = [\n{}]\n\n\
             [grpc]\n  address = \"{}\"\n\n[debug]\n  address = \"{}\"\n  level = \"debug\"\n",
            version.config_version(),
            self.imports,
            directories.root().display(),
            directories.state().display(),
            directories.data.join("temp").display(),
            disabled.concat(),
            directories.socket().display(),
            directories.run.join("debug.sock").display(),
        );
        match &self.cri {
            Cri::Off => {}
            Cri::On(options) => text.push_str(&options.text(version)),
            Cri::Bare => text.push_str(NO_NRI),
        }
        text.push_str(&proxy::tables(&self.proxies, version));
        text.push_str(&self.extra);
        text
    }
}

impl CriOptions {
    /// Scores below the daemon's own need CAP_SYS_RESOURCE, which root may lack: they are restricted.
    fn text(&self, version: Version) -> String {
        let Self {
            default_runtime,
            sandbox_image,
            cni_plugins,
            cni_networks,
            snapshotter,
        } = self;
        let mut text = String::from(NO_NRI);
        let (runtime_plugin, roots) = match version {
            Version::V1_6 | Version::V1_7 => {
                text.push_str(&format!(
                    "\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{sandbox_image}\"\n  \
                     netns_mounts_under_state_dir = true\n  restrict_oom_score_adj = true\n\
                     \n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"{cni_plugins}\"\n  \
                     conf_dir = \"{cni_networks}\"\n",
                ));
                let roots = format!("  snapshotter = \"{snapshotter}\"\n");
                ("io.containerd.grpc.v1.cri", roots)
            }
            Version::V2_4 => {
                text.push_str(&format!(
                    "\n[plugins.\"io.containerd.cri.v1.images\"]\n  snapshotter = \"{snapshotter}\"\n\
                     \n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"{sandbox_image}\"\n\
                     \n[plugins.\"io.containerd.cri.v1.runtime\"]\n  netns_mounts_under_state_dir = true\n  \
                     restrict_oom_score_adj = true\n\
                     \n[plugins.\"io.containerd.cri.v1.runtime\".cni]\n  bin_dirs = [\"{cni_plugins}\"]\n  \
                     conf_dir = \"{cni_networks}\"\n\
                     \n[plugins.\"io.containerd.grpc.v1.cri\"]\n  disable_tcp_service = true\n",
                ));
                ("io.containerd.cri.v1.runtime", String::new())
            }
        };
        let table = format!("plugins.\"{runtime_plugin}\".containerd");
        let written = write!(
            text,
            "\n[{table}]\n  default_runtime_name = \"{default_runtime}\"\n{roots}"
        );
        written.expect("a String takes all");
        let others = [*default_runtime];
        let others = others.into_iter().filter(|it| !Runtime::ALL.contains(it));
        for runtime in Runtime::ALL.into_iter().chain(others) {
            let name = runtime.name();
            let written = write!(
                text,
                "\n[{table}.runtimes.{runtime}]\n  runtime_type = \"{name}\"\n  \
                 pod_annotations = [\"org.pouch.*\"]\n"
            );
            written.expect("a String takes all");
        }
        if (version, *default_runtime) == (Version::V2_4, Runtime::Runv) {
            let name = Runtime::Runv.name();
            let written = write!(
                text,
                "\n[{table}.runtimes.{RUNV_BY_SHIM}]\n  runtime_type = \"{name}\"\n  sandboxer = \"shim\"\n  \
                 disable_pause_image_pull = true\n"
            );
            written.expect("a String takes all");
        }
        text
    }
}
