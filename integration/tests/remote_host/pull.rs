//! The command `pull`: images into stock containerds whose `ctr` asks no snapshotter, without their layers where the store has them,
//! and with them where it has not.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    config::Config,
    containerd::Containerd,
    ctr::Ctr,
    images::Image,
    process::{Finished, Running, command},
    registry::Registry,
    runtime::{Runtime, built},
    snapshotter::{Setup, Snapshotter},
    store::Store,
    versions::{Installed, Version},
    wait::SOON,
};

use super::pulled::check_tree;

/// In the store.
const READY: Image = Image::Debian;

/// In the registry alone; with many layers, which are fetched and unpacked.
const STRANGE: Image = Image::Layers;

/// `me:secret` in base64.
const LOGIN: &str = "bWU6c2VjcmV0";

fn pull(
    containerd: &Containerd,
    reference: &str,
    docker: &Path,
    more: &[&str],
) -> Result<Finished> {
    let mut pull = command(built("snapshotter-remote")?);
    pull.args(["pull", reference]).args(more);
    pull.arg("--containerd").arg(containerd.address());
    pull.arg("--namespace").arg(&containerd.namespace);
    Running::start(pull.env("DOCKER_CONFIG", docker))?.finish(SOON)
}

/// The chainID that a pull has told.
fn disk(said: &str) -> Result<String> {
    let line = said.lines().find_map(|line| line.strip_prefix("disk "));
    Ok(line.context(said.to_owned())?.to_owned())
}

fn check_ready(
    containerd: &Containerd,
    store: &Store,
    registry: &Registry,
    docker: &Path,
) -> Result<()> {
    let reference = registry.reference(READY);
    let nobody = containerd.work().join("nobody");
    let refused = pull(containerd, &reference, &nobody, &[])?;
    let said = refused.with_code(1)?.stderr();
    ensure!(
        said.contains("lets nobody in") && said.lines().count() == 1,
        "{said}"
    );
    let said = pull(containerd, &reference, docker, &[])?
        .success()?
        .stdout();
    ensure!(said.contains("1 layer: 1 of a store\n"), "{said}");
    ensure!(disk(&said)? == store.chain_ids[0], "{said}");
    let layers = registry.pulled_layers();
    ensure!(layers.is_empty(), "{layers:?}");
    // Whatever is not referred to would go now.
    let ctr = Ctr::of(containerd);
    ctr.collect_garbage()?;
    let container = ctr.container("pulled", READY, Runtime::Runc);
    let container = container.image(&reference).snapshotter("remote");
    let said = container.output("cat /etc/os-release")?;
    ensure!(said.contains("Debian"), "{said}");
    let file = docker.join("config.json");
    let file = file.to_str().context("a path in UTF-8")?;
    let again = pull(containerd, &reference, &nobody, &["--auth-file", file])?;
    let said = again.success()?.stdout();
    ensure!(said.contains("1 layer: 1 here before\n"), "{said}");
    check_tree(
        containerd,
        &containerd.namespace,
        READY,
        &store.chain_ids[0],
    )
}

fn check_strange(containerd: &Containerd, registry: &Registry, docker: &Path) -> Result<()> {
    let reference = registry.reference(STRANGE);
    let said = pull(containerd, &reference, docker, &[])?
        .success()?
        .stdout();
    ensure!(said.contains(" fetched and unpacked\n"), "{said}");
    ensure!(!registry.pulled_layers().is_empty(), "{said}");
    Ctr::of(containerd).collect_garbage()?;
    check_tree(containerd, &containerd.namespace, STRANGE, &disk(&said)?)
}

fn check(installed: &Installed, store: &Store, registry: &Registry, at: &str) -> Result<()> {
    let snapshotter = Snapshotter::start(Setup::remote(&store.config(at))?)?;
    let mut config = Config::with_images(&[READY, STRANGE]);
    config.proxies = vec![snapshotter.proxy()];
    let containerd = Containerd::start(installed, &config)?;
    let docker = containerd.work().join("docker");
    fs::create_dir(&docker)?;
    let host = registry.reference(READY);
    let host = host.split('/').next().unwrap_or_default();
    let text = format!(r#"{{"auths": {{"http://{host}/v2/": {{"auth": "{LOGIN}"}}}}}}"#);
    fs::write(docker.join("config.json"), text)?;
    check_ready(&containerd, store, registry, &docker).with_context(|| snapshotter.log_tail())?;
    check_strange(&containerd, registry, &docker).with_context(|| containerd.log_tail())?;
    let ctr = Ctr::of(&containerd);
    // Also those that the harness has imported: they are the same, so what they need stays with them.
    let names = ctr.call(&["images", "ls", "--quiet"])?.success()?.stdout();
    let names: Vec<&str> = names.lines().collect();
    ctr.call(&[&["images", "rm", "--sync"], &names[..]].concat())?
        .success()?;
    ctr.collect_garbage()?;
    containerd.finish()?;
    snapshotter.finish()
}

#[test]
fn images_are_pulled_without_what_the_store_has() {
    let store = Store::with_images(&[READY]).unwrap();
    let registry = Registry::with_login(&[READY, STRANGE], LOGIN).unwrap();
    let served = store.serve().unwrap();
    for installed in Version::available().unwrap() {
        let version = installed.version;
        if let Err(error) = check(&installed, &store, &registry, &served.address) {
            panic!("containerd {version}: {error:?}");
        }
    }
    served.stop().unwrap();
}
