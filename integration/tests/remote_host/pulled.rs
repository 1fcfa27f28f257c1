//! Images that stock containerd pulls through CRI: no layer leaves the registry, the tree is that of an unpacked
//! image, and containers run on while the daemon is killed.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::{
    config::{Config, Cri as CriConfig, CriOptions},
    conformance::{Snapshots, Target, mount_all},
    containerd::Containerd,
    cri::{Container, Cri, Pod, PodNetwork},
    ctr::Ctr,
    images::Image,
    listing::Listing,
    process::{command, output_of},
    registry::Registry,
    runtime::Runtime,
    snapshotter::{Setup, Snapshotter},
    store::Store,
    versions::{Installed, Version},
    wait::{SOON, Sources, until},
};

use super::host::has_pre_content;

const IMAGES: [Image; 2] = [Image::Debian, Image::Layers];

/// `ctr` in the namespace of CRI.
fn ctr(containerd: &Containerd, words: &[&str]) -> Result<String> {
    let mut ctr = command(&containerd.installed.ctr);
    ctr.arg("--address").arg(containerd.address());
    output_of(ctr.args(["--namespace", "k8s.io"]).args(words), SOON)
}

/// The image as stock containerd has unpacked it.
fn unpacked(containerd: &Containerd, image: Image) -> Result<Listing> {
    let point = tempfile::tempdir()?;
    let target = point.path().to_str().context("a path in UTF-8")?;
    let ctr = Ctr::of(containerd);
    ctr.call(&["images", "mount", &image.reference(), target])?
        .success()?;
    let listing = Listing::of(point.path());
    ctr.call(&["images", "unmount", "--rm", target])?
        .success()?;
    Ok(listing?.as_unpacked())
}

/// The snapshots of a namespace, asked of containerd.
fn snapshots(containerd: &Containerd, namespace: &str) -> Result<Snapshots> {
    Snapshots::connect(&Target {
        namespace: Some(namespace.to_owned()),
        ..Target::proxy(containerd.address(), "remote")
    })
}

/// Waits until containerd reaches the daemon that was started again. Before that it removes nothing, and
/// asks again only when there is more to be removed.
fn await_daemon(containerd: &Containerd) -> Result<()> {
    let client = snapshots(containerd, "k8s.io")?;
    let what = "containerd reaches the daemon again";
    until(what, SOON, Sources::none(), || {
        Ok(client.list(&[]).ok().map(drop))
    })
}

/// The image as containerd has pulled it.
fn pulled(containerd: &Containerd, namespace: &str, chain_id: &str) -> Result<Listing> {
    let client = snapshots(containerd, namespace)?;
    let kept = [("containerd.io/gc.root".to_owned(), "now".to_owned())];
    let mounts = client.view("looked-at", chain_id, kept.into())?;
    let point = tempfile::tempdir()?;
    let mounted = mount_all(&mounts, point.path())?;
    let listing = Listing::of(mounted.point());
    mounted.unmount()?;
    client.remove("looked-at")?;
    Ok(listing?.as_unpacked())
}

pub(super) fn check_tree(
    containerd: &Containerd,
    namespace: &str,
    image: Image,
    chain_id: &str,
) -> Result<()> {
    let expected = unpacked(containerd, image)?;
    ensure!(expected.entries.len() > 100);
    let lines = expected.differences(&pulled(containerd, namespace, chain_id)?);
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

/// A container that reads of its image before and after the daemon was killed.
fn check_container(
    containerd: &Containerd,
    cri: &Cri,
    reference: &str,
    snapshotter: &Snapshotter,
) -> Result<()> {
    let log_directory = containerd.work().join("logs");
    fs::create_dir(&log_directory)?;
    let pod = Pod {
        name: "remote".to_owned(),
        handler: Runtime::Runc.to_string(),
        network: PodNetwork::Node,
        log_directory,
        cgroup_parent: format!("/{}", containerd.namespace),
        annotations: Vec::new(),
    };
    let pod_id = cri.run_pod(&pod)?;
    let container = Container {
        name: "reader".to_owned(),
        image: reference.to_owned(),
        command: ["sh", "-c", "while true; do sleep 1000; done"]
            .map(str::to_owned)
            .to_vec(),
        ..Container::default()
    };
    let id = cri.create(&pod, &pod_id, &container)?;
    cri.start(&id)?;
    let read = |script: &str| {
        let done = cri.exec(&id, &["sh", "-c", script])?;
        ensure!(done.code == 0, "{done:?}");
        anyhow::Ok(done.stdout)
    };
    read("echo written >/etc/new && cat /etc/new")?;
    snapshotter.kill9()?;
    let sums = "find /usr/bin /bin -type f | sort | xargs cat | sha256sum";
    let without = read(sums)?;
    snapshotter.start_again()?;
    ensure!(read(sums)? == without);
    ensure!(read("cat /etc/new")? == "written\n");
    cri.remove_pod(&pod_id)
}

fn check(installed: &Installed, store: &Store, registry: &Registry, at: &str) -> Result<()> {
    let config = store.config(at) + "[log]\nlevel = \"debug\"\n";
    let snapshotter = Snapshotter::start(Setup::remote(&config)?)?;
    let mut config = Config::with_images(&IMAGES);
    config.proxies = vec![snapshotter.proxy()];
    config.cri = CriConfig::On(CriOptions {
        default_runtime: Runtime::Runc,
        sandbox_image: registry.reference(Image::Pause),
        cni_plugins: "/nonexistent".to_owned(),
        cni_networks: "/nonexistent".to_owned(),
        snapshotter: "remote".to_owned(),
    });
    let containerd = Containerd::start(installed, &config)?;
    let cri = Cri::connect(&containerd.address())?;
    for (image, chain_id) in IMAGES.into_iter().zip(&store.chain_ids) {
        let reference = registry.reference(image);
        cri.pull(&reference).context(reference.clone())?;
        let pulled = registry.pulled_layers();
        ensure!(pulled.is_empty(), "{reference}: {pulled:?}");
        check_tree(&containerd, "k8s.io", image, chain_id)
            .with_context(|| snapshotter.log_tail())
            .context(reference)?;
    }
    let log = fs::read_to_string(snapshotter.log_file())?;
    let is_lazy = log.contains("back_end=lazy");
    ensure!(is_lazy == has_pre_content(), "another back end was taken");
    let reference = registry.reference(Image::Debian);
    check_container(&containerd, &cri, &reference, &snapshotter)
        .with_context(|| containerd.log_tail())?;
    drop(cri);
    await_daemon(&containerd)?;
    let names = ctr(&containerd, &["images", "ls", "--quiet"])?;
    let names: Vec<&str> = names.lines().collect();
    ctr(
        &containerd,
        &[&["images", "rm", "--sync"], &names[..]].concat(),
    )?;
    Ctr::of(&containerd).collect_garbage()?;
    containerd.finish()?;
    snapshotter.finish()
}

#[test]
fn images_of_a_store_are_pulled_without_their_layers() {
    let all = [&IMAGES[..], &[Image::Pause]].concat();
    let store = Store::with_images(&all).unwrap();
    let registry = Registry::with_images(&all).unwrap();
    let served = store.serve().unwrap();
    for installed in Version::available().unwrap() {
        let version = installed.version;
        if let Err(error) = check(&installed, &store, &registry, &served.address) {
            panic!("containerd {version}: {error:?}");
        }
    }
    served.stop().unwrap();
}
