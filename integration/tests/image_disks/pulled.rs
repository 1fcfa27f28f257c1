//! Images that come from Debian's docker-registry: the same disks as of their archives.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    certificates::Certificates,
    docker_registry::{DockerRegistry, Lets},
    images::Image,
    process::{Finished, Running, command},
    runtime::built,
    wait::SOON,
};

use super::store::store;

/// What `store add` of that image of the registry writes.
fn add(reference: &str, directory: &Path, auth: &str) -> Result<Finished> {
    let file = directory.join("auth.json");
    fs::write(&file, auth)?;
    add_with(reference, directory, &[Path::new("--auth-file"), &file])
}

fn add_with(reference: &str, directory: &Path, options: &[&Path]) -> Result<Finished> {
    let mut add = command(built("snapshotter-remote")?);
    add.args(["store", "add", &format!("docker://{reference}")]);
    add.args(options).arg("--dir").arg(directory.join("pulled"));
    Running::start(&mut add)?.finish(SOON * 6)
}

#[test]
fn an_image_of_docker_registry_is_the_disk_that_its_archive_is() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    let images = [Image::Busybox, Image::Layers];
    let registry = DockerRegistry::with_images(&images, Lets::Everybody)?;
    for image in images {
        let said = add(&registry.reference(image), path, "{}")?
            .success()?
            .stdout();
        let archive = image.archive()?;
        let archive = archive.to_str().context("a path that is text")?;
        let other = store(&["add", archive], &path.join("archived"))?;
        let chain_id = other.split(' ').next().unwrap_or_default();
        ensure!(said.starts_with(chain_id), "{said} is not {other}");
        let exported = |from: &str| -> Result<Vec<u8>> {
            let file = path.join(format!("{from}.erofs"));
            let shown = file.to_str().context("a path that is text")?;
            store(&["export", chain_id, shown], &path.join(from))?;
            let bytes = fs::read(&file)?;
            fs::remove_file(&file)?;
            Ok(bytes)
        };
        ensure!(
            exported("pulled")? == exported("archived")?,
            "{image:?} has other bytes"
        );
    }
    Ok(())
}

#[test]
fn docker_registry_lets_in_who_has_its_credentials() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let registry = DockerRegistry::with_images(&[Image::Busybox], Lets::User)?;
    let reference = registry.reference(Image::Busybox);
    let add = |auth: &str| {
        // user:secret is the right one.
        let auths = format!(
            "{{ \"auths\": {{ \"{}\": {{ \"auth\": \"{auth}\" }} }} }}",
            registry.address()
        );
        add(&reference, directory.path(), &auths)
    };
    add("dXNlcjpvdGhlcg==")?.failing_with("its credentials are refused")?;
    add("")?.failing_with("--auth-file names a file")?;
    add("dXNlcjpzZWNyZXQ=")?.success()?;
    Ok(())
}

#[test]
fn docker_registry_is_believed_by_its_authority() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let name = "127.0.0.1";
    let (ours, others) = (Certificates::of(&[name])?, Certificates::of(&[])?);
    let key = format!("{name}.key");
    let registry = DockerRegistry::with_tls(&[Image::Busybox], &ours.path(name), &ours.path(&key))?;
    let reference = registry.reference(Image::Busybox);
    let add = |authority: &Certificates| {
        let options = [Path::new("--registry-ca"), &authority.path("ca")];
        add_with(&reference, directory.path(), &options)
    };
    add(&others)?.failing_with("certificate")?;
    add(&ours)?.success()?;
    Ok(())
}
