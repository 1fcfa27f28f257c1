//! The daemon on a host.

use std::{fmt::Write, process::ExitCode};

use super::{
    arguments::{ChainId, Containerd, Host, HostServe, OpenServed, Pins, PullImage, UnmountServed},
    bytes, in_one_line, out,
};
use crate::{
    Error, Result, host,
    image::{ImageName, Platform},
    pull::{self, Place, Pull},
};

/// `snapshotter-remote serve`.
pub(super) fn serve(asked: &HostServe) -> Result<ExitCode> {
    let asked = asked.clone();
    let reread = move || {
        let mut config = host::Config::read(asked.config.as_deref())?;
        override_by(&mut config, &asked);
        Ok(config)
    };
    let config = reread()?;
    host::serve(&config, Box::new(reread))?;
    Ok(ExitCode::SUCCESS)
}

/// What the daemon starts to open files that it answers for.
pub(super) fn open_served(asked: &OpenServed) -> Result<ExitCode> {
    let sent = host::opener::send(&asked.names);
    sent.map_err(|source| Error::File {
        doing: "opening files of",
        path: "the daemon's FUSE connection".into(),
        source,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the daemon starts to unmount a disk; the code is the number of an error.
pub(super) fn unmount_served(asked: &UnmountServed) -> ExitCode {
    let errno = host::detach::unmount(&asked.target);
    errno.map_or(ExitCode::SUCCESS, ExitCode::from)
}

/// Puts what the flags say over a configuration.
fn override_by(config: &mut host::Config, asked: &HostServe) {
    if let Some(root) = &asked.root {
        config.root.clone_from(root);
    }
    if let Some(address) = &asked.address {
        config.address.clone_from(address);
    }
    if !asked.stores.is_empty() {
        config.store.urls.clone_from(&asked.stores);
    }
    if asked.key_file.is_some() {
        config.store.key_file.clone_from(&asked.key_file);
    }
    if asked.token_file.is_some() {
        config.store.token_file.clone_from(&asked.token_file);
    }
    if let Some(metrics) = &asked.metrics {
        config.metrics.address = Some(metrics.clone());
    }
}

/// `snapshotter-remote pull`.
pub(super) fn pull(asked: &PullImage) -> Result<ExitCode> {
    let pulled = pull::pull(&Pull {
        place: place(asked.image.clone(), &asked.containerd),
        snapshotter: asked.snapshotter.clone(),
        access: asked.registries.access(),
    })?;
    let layers = pulled.known + pulled.ready + pulled.unpacked;
    let plural = if layers == 1 { "" } else { "s" };
    let mut text = format!(
        "{}  sha256:{}  {layers} layer{plural}",
        pulled.name, pulled.digest
    );
    let counts = [
        (pulled.ready, "of a store"),
        (pulled.known, "here before"),
        (pulled.unpacked, "fetched and unpacked"),
    ];
    let mut separator = ": ";
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        write!(text, "{separator}{count} {what}").expect("a string takes everything");
        separator = ", ";
    }
    text.push('\n');
    if let Some(chain_id) = pulled.chain_id {
        writeln!(text, "disk sha256:{chain_id}").expect("a string takes everything");
    }
    out(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn place(image: ImageName, of: &Containerd) -> Place {
    Place {
        image,
        containerd: of.containerd.clone(),
        namespace: of.namespace.clone(),
        platform: of.platform.clone().unwrap_or_else(Platform::host),
    }
}

/// `snapshotter-remote status`.
pub(super) fn status(asked: &Host) -> Result<ExitCode> {
    let config = config(asked)?;
    let mut text = String::new();
    let status = host::status(&config.root, &config.store.keys()?)?;
    for disk in status.disks {
        match disk {
            Ok(disk) => {
                let (all, here) = disk.chunks;
                let fetched = match (here * 100).checked_div(all) {
                    Some(percent) => format!("{here} of {all} chunks here ({percent} %)"),
                    None => "no chunk is needed yet".to_owned(),
                };
                let followed = match disk.trace {
                    Some((steps, here)) => format!(", {here} of {steps} of its trace"),
                    None => String::new(),
                };
                let mounted = match disk.is_mounted {
                    true if here < all => ", mounted, the rest is fetched when it is read",
                    true => ", mounted",
                    false => "",
                };
                let pinned = if disk.is_pinned { ", pinned" } else { "" };
                let plural = if disk.layers == 1 { "" } else { "s" };
                writeln!(
                    text,
                    "sha256:{}  {} layer{plural}  {}  {fetched}{followed}{mounted}{pinned}",
                    disk.chain_id,
                    disk.layers,
                    bytes(disk.bytes)
                )
            }
            Err(error) => writeln!(text, "{}", in_one_line(&error)),
        }
        .expect("a string takes everything");
    }
    for chain_id in status.pinned_elsewhere {
        writeln!(text, "sha256:{chain_id}  not here, pinned").expect("a string takes everything");
    }
    let most = match config.cache.max_bytes {
        0 => "without a limit".to_owned(),
        most => format!("at most {}", bytes(most)),
    };
    writeln!(text, "cache  {}, {most}", bytes(status.cache_bytes))
        .expect("a string takes everything");
    out(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// `snapshotter-remote pin`.
pub(super) fn pin(asked: &Pins) -> Result<ExitCode> {
    let root = config(&asked.host)?.root;
    for ChainId(chain_id) in &asked.chain_ids {
        let said = match host::pin(&root, *chain_id)? {
            true => "pinned",
            false => "was pinned",
        };
        out(&format!("sha256:{chain_id}  {said}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `snapshotter-remote unpin`.
pub(super) fn unpin(asked: &Pins) -> Result<ExitCode> {
    let root = config(&asked.host)?.root;
    for ChainId(chain_id) in &asked.chain_ids {
        let said = match host::unpin(&root, *chain_id)? {
            true => "pinned no more",
            false => "was not pinned",
        };
        out(&format!("sha256:{chain_id}  {said}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `snapshotter-remote doctor`.
pub(super) fn doctor(asked: &Host) -> Result<ExitCode> {
    let findings = host::doctor(&config(asked)?)?;
    let mut text = String::new();
    for finding in &findings {
        let severity = finding.severity.to_string();
        writeln!(text, "{severity:<8} {}", finding.what).expect("a string takes everything");
    }
    out(&text)?;
    let is_ill = findings
        .iter()
        .any(|finding| finding.severity == host::Severity::Error);
    Ok(if is_ill {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

pub(super) fn config(asked: &Host) -> Result<host::Config> {
    let mut config = host::Config::read(asked.config.as_deref())?;
    if let Some(root) = &asked.root {
        config.root.clone_from(root);
    }
    if let Some(address) = &asked.address {
        config.address.clone_from(address);
    }
    Ok(config)
}
