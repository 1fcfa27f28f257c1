//! `snapshotter-remote store`.

use std::{fmt::Write, process::ExitCode, time::Duration};

use snapshot_core::daemon::Logging;

use super::{
    arguments::{Add, Export, Gc, Image, Rm, Serve, Store as Command, Verify, Wait},
    bytes,
    ending::take_back_at_signals,
    in_one_line, out,
};
use crate::{
    Result,
    image::{Origin, Platform, Registry},
    serve::{Config, Server},
    store::{Below, Store, Sweep, Waste},
};

pub(super) fn perform(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Add(asked) => add(asked)?,
        Command::Ls(place) => list(&Store::open(place.place()?)?)?,
        Command::Verify(asked) => return verify(asked),
        Command::Rm(asked) => remove(asked)?,
        Command::Gc(asked) => collect(asked)?,
        Command::Serve(asked) => serve(asked)?,
        Command::Export(asked) => export(asked)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(asked: &Add) -> Result<()> {
    let platform = asked.platform.clone().unwrap_or_else(Platform::host);
    let origin = match &asked.image {
        Image::Layout(path) => Origin::open(path)?,
        Image::Registry(name) => {
            let registry = Registry::of(name.clone(), &asked.registries.access())?;
            Origin::of_registry(registry)?
        }
    };
    let images = origin.images(&platform)?;
    let place = asked.place.place()?;
    take_back_at_signals(&place)?;
    let store = Store::create(place)?;
    for image in &images {
        let added = store.add(image)?;
        let made = match added.disks_made {
            0 => "already there".to_owned(),
            made => format!("{made} of {} disks made", added.layers),
        };
        out(&format!(
            "sha256:{}  {}  {}, {made}\n",
            added.chain_id,
            image.name(),
            bytes(added.disk_bytes)
        ))?;
    }
    Ok(())
}

fn list(store: &Store) -> Result<()> {
    let mut text = String::new();
    for disk in store.list()? {
        let plural = if disk.layers == 1 { "" } else { "s" };
        writeln!(
            text,
            "sha256:{}  {} layer{plural}  {} of which {} metadata",
            disk.chain_id,
            disk.layers,
            bytes(disk.disk_bytes),
            bytes(disk.metadata_bytes)
        )
        .expect("a string takes everything");
    }
    out(&text)
}

fn verify(asked: &Verify) -> Result<ExitCode> {
    let place = asked.place.place_for(&asked.wait)?;
    take_back_at_signals(&place)?;
    let store = Store::open(place)?;
    let verified = store.verify()?;
    let mut text = String::new();
    for damage in &verified.damages {
        writeln!(text, "{}: {}", damage.object, in_one_line(&damage.error))
            .expect("a string takes everything");
    }
    writeln!(
        text,
        "{} disks, {} chunks of {}, {} of them unused: {} damaged or missing",
        verified.disks,
        verified.chunks,
        bytes(verified.chunk_bytes),
        verified.chunks_unused,
        verified.damages.len()
    )
    .expect("a string takes everything");
    // What was found is said before anything can fail or go.
    out(&text)?;
    if asked.remove_damaged {
        let removed = store.remove_damaged(&verified, limit(&asked.wait))?;
        out(&format!("{removed} removed\n"))?;
    }
    Ok(if verified.damages.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn remove(asked: &Rm) -> Result<()> {
    let place = asked.place.place_for(&asked.wait)?;
    take_back_at_signals(&place)?;
    let store = Store::open(place)?;
    let below = if asked.prefixes {
        Below::Remove
    } else {
        Below::Keep
    };
    for chain_id in &asked.chain_ids {
        for gone in store.remove(chain_id.0, below, limit(&asked.wait))? {
            out(&format!("sha256:{gone}  removed\n"))?;
        }
    }
    Ok(())
}

fn collect(asked: &Gc) -> Result<()> {
    let place = asked.place.place_for(&asked.wait)?;
    take_back_at_signals(&place)?;
    let store = Store::open(place)?;
    let (sweep, done) = if asked.dry_run {
        (Sweep::Count, "would be removed")
    } else {
        (Sweep::Remove, "removed")
    };
    let waste = store.waste(sweep, limit(&asked.wait))?;
    let mut text = String::new();
    let mut of_kinds = Vec::new();
    for (what, length) in &waste {
        let (kind, name) = match what {
            Waste::Object(name) => {
                let name = name.to_string();
                (name.split('/').next().unwrap_or_default().to_owned(), name)
            }
            Waste::Leftover(path) => ("leftovers".to_owned(), path.display().to_string()),
        };
        if asked.names {
            writeln!(text, "{name}  {}", bytes(*length)).expect("a string takes everything");
        }
        match of_kinds.last_mut() {
            Some((last, count, sum)) if *last == kind => {
                *count += 1;
                *sum += length;
            }
            _ => of_kinds.push((kind, 1, *length)),
        }
    }
    for (kind, count, sum) in of_kinds {
        writeln!(text, "{count} {kind} of {}", bytes(sum)).expect("a string takes everything");
    }
    let all = waste.iter().map(|(_, length)| length).sum();
    writeln!(text, "{} {done}", bytes(all)).expect("a string takes everything");
    out(&text)
}

fn limit(wait: &Wait) -> Duration {
    Duration::from_secs(wait.seconds.into())
}

fn serve(asked: &Serve) -> Result<()> {
    let asked = asked.clone();
    let reread = move || {
        let mut config = Config::read(asked.config.as_deref())?;
        override_by(&mut config, &asked)?;
        Ok(config)
    };
    let config = reread()?;
    let logging = Logging::start(config.log, env!("CARGO_CRATE_NAME"))?;
    Server::claim(config)?.run(&logging, &reread)
}

/// Puts what the flags say over a configuration.
fn override_by(config: &mut Config, asked: &Serve) -> Result<()> {
    if let Some(path) = &asked.path {
        config.dir.clone_from(path);
        config.store = None;
    }
    if asked.store.is_some() {
        config.store.clone_from(&asked.store);
    }
    if config.store.is_none() {
        asked.s3.only_of_a_bucket()?;
    }
    config.s3 = asked.s3.over(std::mem::take(&mut config.s3));
    if let Some(listen) = asked.listen {
        config.listen = listen;
    }
    if asked.listen_nbd.is_some() {
        config.nbd.listen = asked.listen_nbd;
    }
    config.plaintext |= asked.plaintext;
    config.convert.enabled |= asked.convert;
    if let Some(file) = &asked.token_file {
        config.token_file = Some(file.clone());
    }
    let files = [
        (&asked.tls_certificate, &mut config.tls.certificate_file),
        (&asked.tls_key, &mut config.tls.key_file),
        (&asked.client_ca, &mut config.tls.client_ca_file),
    ];
    for (asked, file) in files {
        if asked.is_some() {
            file.clone_from(asked);
        }
    }
    if let Some(metrics) = &asked.metrics {
        config.metrics.address = Some(metrics.clone());
    }
    Ok(())
}

fn export(asked: &Export) -> Result<()> {
    let store = Store::open(asked.place.place()?)?;
    store.export(asked.chain_id.0, &asked.file)
}
