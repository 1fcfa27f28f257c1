//! Debian images from Debian packages, by mmdebstrap with this machine's apt sources.
//!
//! What differs from run to run although the packages do not is left out: logs, lists, caches, keys, ids.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tar::{Archive, EntryType};

use super::layer::{Content, Device, Entry, Layer};
use crate::{
    apt,
    process::{command, output_of},
};

const LIMIT: Duration = Duration::from_secs(1200);
const SUITE: &str = "bookworm";

/// No package but the minimal ones.
pub(super) const MINIMAL: &str = "";

/// What a rich container runs.
pub(super) const WITH_SYSTEMD: &str =
    "systemd,systemd-sysv,dbus,cron,rsyslog,openssh-server,procps,iproute2";

/// What a rich container runs whose init is older.
pub(super) const WITH_SYSVINIT: &str = "sysvinit-core,insserv,startpar,cron,procps";

/// Directories that stay, empty.
const EMPTIED: &[&str] = &[
    "dev/",
    "run/",
    "tmp/",
    "var/cache/apt/",
    "var/lib/apt/lists/",
    "var/log/",
];

/// Files that are made anew on every machine, or when the image is made.
const LEFT_OUT: &[&str] = &[
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/catalog/database",
    "var/lib/systemd/random-seed",
];

/// The layer with these packages, comma-separated, beside the minimal ones.
pub(super) fn layer(packages: &str) -> Result<Layer> {
    let included = (!packages.is_empty()).then(|| format!("--include={packages}"));
    let options = ["--variant=minbase".to_owned()].into_iter().chain(included);
    layer_of((SUITE, &sources()?), options)
}

/// The layer that mmdebstrap makes of a suite of these sources, with these options of it.
pub(super) fn layer_of(
    (suite, sources): (&str, &str),
    options: impl IntoIterator<Item = String>,
) -> Result<Layer> {
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("debian.tar");
    let mut mmdebstrap = command("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--quiet"])
        .args(options)
        .arg(suite)
        .arg(&archive)
        .arg(sources)
        // Dates in /etc/shadow and the like come from there.
        .env("SOURCE_DATE_EPOCH", "1700000000");
    output_of(&mut mmdebstrap, LIMIT).with_context(|| format!("making a tree of {suite}"))?;
    read(&archive)
}

/// The machine's apt sources; a machine that has them elsewhere uses its mirror.
fn sources() -> Result<String> {
    let path = "/etc/apt/sources.list.d/debian.sources";
    if Path::new(path).exists() {
        Ok(path.to_owned())
    } else {
        apt::mirror()
    }
}

fn read(path: &Path) -> Result<Layer> {
    let mut archive = Archive::new(BufReader::new(File::open(path)?));
    let mut layer = Layer::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let name = name
            .trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned();
        if name.is_empty() || is_left_out(&name) {
            continue;
        }
        let made = made(&mut entry).with_context(|| format!("reading entry {name}"))?;
        layer.insert(&name, made);
    }
    // systemd fills in an empty one.
    layer.file("etc/machine-id", "");
    Ok(layer)
}

fn is_left_out(name: &str) -> bool {
    LEFT_OUT.contains(&name)
        || name.starts_with("etc/ssh/ssh_host_")
        || EMPTIED.iter().any(|directory| name.starts_with(directory))
}

fn made(entry: &mut tar::Entry<'_, impl Read>) -> Result<Entry> {
    let mut xattrs = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(xattr) = extension.key()?.strip_prefix("SCHILY.xattr.") {
                xattrs.push((xattr.to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    let content = content(entry)?;
    let header = entry.header();
    Ok(Entry {
        content,
        mode: header.mode()? & 0o7777,
        uid: header.uid()?,
        gid: header.gid()?,
        xattrs: xattrs.into_iter().collect(),
    })
}

fn content(entry: &mut tar::Entry<'_, impl Read>) -> Result<Content> {
    Ok(match entry.header().entry_type() {
        EntryType::Directory => Content::Directory,
        EntryType::Symlink => Content::Symlink(link_target(entry)?),
        EntryType::Link => {
            Content::HardLink(link_target(entry)?.trim_start_matches("./").to_owned())
        }
        EntryType::Regular => {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Content::File(bytes)
        }
        EntryType::Char => {
            let header = entry.header();
            let number = header.device_major()?.zip(header.device_minor()?);
            let (major, minor) = number.context("a device has a number")?;
            Content::Device(Device::Character(major, minor))
        }
        other => bail!("unexpected kind of entry: {other:?}"),
    })
}

fn link_target(entry: &tar::Entry<'_, impl Read>) -> Result<String> {
    let target = entry.link_name()?.context("a link has a target")?;
    Ok(target.to_string_lossy().into_owned())
}
