//! A disk that no store has yet: the store makes it of the image that containerd names, while the host waits for it. The two
//! know each other by certificates.

use std::fs;

use anyhow::{Result, bail, ensure};
use integration::{
    certificates::Certificates,
    conformance::Labels,
    images::Image,
    registry::Registry,
    snapshotter::{Setup, Snapshotter},
    store::{FREE_PORT, Served, Store},
    versions::system_program,
};
use tonic::Code;

use super::host::{Host, program};

/// The name of the committed snapshot that is found for a layer of an image; none when it is to be unpacked.
fn pull(host: &Host, key: &str, image: &str) -> Result<Option<String>> {
    let client = host.client()?;
    let chain_id = &host.store.chain_ids[0];
    let labels = Labels::from([
        ("containerd.io/snapshot.ref".to_owned(), chain_id.clone()),
        (
            "containerd.io/snapshot/cri.image-ref".to_owned(),
            image.to_owned(),
        ),
    ]);
    match client.prepare(key, "", labels) {
        Ok(_) => {
            client.remove(key)?;
            return Ok(None);
        }
        Err(status) if status.code() == Code::AlreadyExists => {}
        Err(status) => bail!("{status}"),
    }
    let filter = format!("labels.\"containerd.io/snapshot.ref\"==\"{chain_id}\"");
    Ok(client
        .list(&[filter])?
        .first()
        .map(|found| found.name.clone()))
}

#[test]
fn a_store_converts_the_image_that_a_host_asks_for_and_the_host_waits() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let certificates = Certificates::of(&["127.0.0.1", "host"])?;
    let file = |name: &str| certificates.path(name).display().to_string();
    // It says which chain is asked for, and is not served.
    let known = Store::with_images(&[Image::Busybox])?;
    let registry = Registry::with_images(&[Image::Busybox])?;
    let image = registry.reference(Image::Busybox);
    let allowed = image.split('/').next().unwrap_or_default();
    let served = Served::start_with(
        &store,
        FREE_PORT,
        &format!(
            "[tls]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\nclient_ca_file = \"{}\"\n\
             [convert]\nenabled = true\nimages = [\"{allowed}\"]\n",
            file("127.0.0.1"),
            file("127.0.0.1.key"),
            file("ca")
        ),
    )?;
    let config = format!(
        "[store]\nurls = [\"https://{}\"]\nkey_file = \"{}\"\n[store.tls]\nca_file = \"{}\"\n\
         certificate_file = \"{}\"\nkey_file = \"{}\"\n[store.convert]\nask = true\nwait_seconds = 120\n",
        served.address,
        store.join("key.pub").display(),
        file("ca"),
        file("host"),
        file("host.key")
    );
    let host = Host {
        address: served.address.clone(),
        served: Some(served),
        snapshotter: Snapshotter::start(Setup::remote(&config)?)?,
        store: known,
    };
    // One that may not be converted is unpacked by containerd, as ever.
    ensure!(pull(&host, "other", "other.example/image:1")?.is_none());
    ensure!(registry.pulled_layers().is_empty());
    let layer = pull(&host, "extract", &image)?;
    let Some(layer) = layer else {
        bail!("it is to be unpacked: {}", host.log()?);
    };
    ensure!(
        registry.pulled_layers().len() == 1,
        "the store pulls each layer once"
    );
    let mounted = host.mount("c", &layer)?;
    ensure!(program(&mounted)? == fs::read(system_program("busybox")?)?);
    mounted.unmount()?;
    host.remove(&["c", &layer])?;
    host.finish()?;
    Ok(())
}
