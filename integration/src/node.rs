//! A node of Kubernetes: containerd with its CRI plug-in and CNI, for each line of containerd in turn.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

use crate::{
    config::{Config, Cri as CriConfig, CriOptions},
    containerd::Containerd,
    cri::{Container, Cri, Pod, PodNetwork},
    ctr::Ctr,
    images::Image,
    network::{CNI_PLUGINS, NetworkNamespace, bridge_list},
    process::{command, output_of},
    runtime::{Home, Runtime},
    snapshotter::Snapshotter,
    versions::{Installed, Version},
};

/// A Debian takes a busy machine its time.
const IMPORT: Duration = Duration::from_secs(300);

/// One containerd that runs pods by one runtime.
#[derive(Debug)]
pub struct Node<'a> {
    /// Kubernetes' interface.
    pub cri: Cri,
    /// The daemon.
    pub containerd: &'a Containerd,
    /// What makes its pods.
    pub runtime: Runtime,
}

impl Node<'_> {
    /// A pod to run, with a directory for its logs.
    pub fn pod(&self, name: &str, network: PodNetwork) -> Result<Pod> {
        let log_directory = self.containerd.work().join(name);
        fs::create_dir(&log_directory)?;
        Ok(Pod {
            name: name.to_owned(),
            handler: self.runtime.to_string(),
            network,
            log_directory,
            // Below the instance's tag, so that the census finds what is left of it.
            cgroup_parent: format!("/{}", self.containerd.namespace),
            annotations: Vec::new(),
        })
    }
}

/// A busybox that runs a script.
#[must_use]
pub fn shell(name: &str, script: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Image::Busybox.reference(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..Container::default()
    }
}

/// Checks a behaviour with busybox on every containerd, and that nothing is left behind.
///
/// # Panics
///
/// When it fails on one, with what failed.
pub fn check(runtime: Runtime, behaviour: impl Fn(&Node<'_>) -> Result<()>) {
    check_on(runtime, Image::Busybox, || Ok(None), behaviour);
}

/// With that image, and roots made by that snapshotter, or by containerd's own.
///
/// # Panics
///
/// As [`check`].
pub fn check_on(
    runtime: Runtime,
    image: Image,
    snapshotter: impl Fn() -> Result<Option<Snapshotter>>,
    behaviour: impl Fn(&Node<'_>) -> Result<()>,
) {
    let run = || -> Result<()> {
        runtime
            .binaries()
            .context("the runtime under test is missing")?;
        // A pod has one.
        let home = runtime.home(1)?;
        for installed in Version::available()? {
            let snapshotter = snapshotter()?;
            let place = (runtime, home.as_ref());
            on_one(&installed, place, image, snapshotter.as_ref(), &behaviour)
                .with_context(|| format!("containerd {}", installed.version))?;
            snapshotter.map_or(Ok(()), Snapshotter::finish)?;
        }
        Ok(())
    };
    let outcome = run();
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// With busybox on that containerd.
///
/// # Errors
/// What failed, also that something is left behind.
pub fn on(
    installed: &Installed,
    runtime: Runtime,
    behaviour: impl FnMut(&Node<'_>) -> Result<()>,
) -> Result<()> {
    runtime
        .binaries()
        .context("the runtime under test is missing")?;
    // A pod has one link.
    let home = runtime.home(1)?;
    let place = (runtime, home.as_ref());
    on_one(installed, place, Image::Busybox, None, behaviour)
}

fn on_one(
    installed: &Installed,
    (runtime, home): (Runtime, Option<&Home>),
    image: Image,
    snapshotter: Option<&Snapshotter>,
    mut behaviour: impl FnMut(&Node<'_>) -> Result<()>,
) -> Result<()> {
    let network = NetworkNamespace::new()?;
    let temp = tempfile::tempdir()?;
    let list = bridge_list("pods", "pods0", "10.210.0.0/24", &temp.path().join("ipam"));
    fs::write(temp.path().join("10-pods.conflist"), list)?;
    // CRI keeps its images in the namespace k8s.io.
    let mut config = Config::with_images(&[]);
    config.network = Some(network.path());
    config.environment.extend(home.map(Home::variable));
    // Images are unpacked anew, and a disk takes most of a minute for a Debian.
    config.is_in_memory = true;
    config.proxies = snapshotter.iter().map(|it| it.proxy()).collect();
    let roots = config
        .proxies
        .first()
        .map_or("overlayfs", |proxy| &proxy.name);
    config.cri = CriConfig::On(CriOptions {
        default_runtime: runtime,
        sandbox_image: Image::Pause.reference(),
        cni_plugins: CNI_PLUGINS.to_owned(),
        cni_networks: temp.path().display().to_string(),
        snapshotter: roots.to_owned(),
    });
    let containerd = Containerd::start(installed, &config)?;
    for image in [image, Image::Pause] {
        let mut import = command(&containerd.installed.ctr);
        import.arg("--address").arg(containerd.address());
        import.args(["--namespace", "k8s.io", "images", "import"]);
        output_of(import.arg(image.archive()?), IMPORT)?;
    }
    let node = Node {
        cri: Cri::connect(&containerd.address())?,
        containerd: &containerd,
        runtime,
    };
    behaviour(&node).with_context(|| containerd.log_tail())?;
    drop(node);
    Ctr::of(&containerd).collect_garbage()?;
    containerd.finish().context("at the end")
}
