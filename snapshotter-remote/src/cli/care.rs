//! What the daemon of this host does when it is asked.

use std::process::ExitCode;

use disk::Digest;
use proto::remote::{GcRequest, VerifyProgress, VerifyRequest, WarmProgress, WarmRequest};

use super::{
    arguments::{ChainId, GcHost, VerifyHost, Warm},
    bytes,
    daemon::Daemon,
    host::{config, place},
    out,
};
use crate::{
    error::{Error, Result},
    pull::chain_of_image,
};

/// `snapshotter-remote warm`.
pub(super) fn warm(asked: &Warm) -> Result<ExitCode> {
    let daemon = Daemon::connect(&config(&asked.host)?.address)?;
    for name in &asked.disks {
        let chain_id = match name.parse() {
            Ok(ChainId(chain_id)) => chain_id,
            Err(_no_chain_id) => {
                let image = name.parse().map_err(|what| {
                    Error::Setting(format!("{name:?} is no chainID (sha256:...), and {what}"))
                })?;
                chain_of_image(&place(image, &asked.containerd))?
            }
        };
        let last = warm_one(&daemon, chain_id)?;
        let (all, here) = (last.chunks, last.chunks_here);
        out(&format!("sha256:{chain_id}  {here} of {all} chunks here\n"))?;
        if here < all {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn warm_one(daemon: &Daemon, chain_id: Digest) -> Result<WarmProgress> {
    let request = WarmRequest {
        chain_id: chain_id.to_string(),
    };
    let mut stream = daemon.call(async |mut client| client.warm(request).await)?;
    let mut last = WarmProgress::default();
    while let Some(progress) = daemon.next(&mut stream)? {
        last = progress;
    }
    Ok(last)
}

/// `snapshotter-remote verify`.
pub(super) fn verify(asked: &VerifyHost) -> Result<ExitCode> {
    let daemon = Daemon::connect(&config(&asked.host)?.address)?;
    let chain_ids = asked.chain_ids.iter();
    let request = VerifyRequest {
        chain_ids: chain_ids
            .map(|ChainId(chain_id)| chain_id.to_string())
            .collect(),
    };
    let mut stream = daemon.call(async |mut client| client.verify(request).await)?;
    let mut last = VerifyProgress::default();
    while let Some(progress) = daemon.next(&mut stream)? {
        last = progress;
    }
    let (damaged, repaired) = (last.damaged, last.repaired);
    let mut text = format!("{} chunks, {}: ", last.chunks, bytes(last.bytes));
    text.push_str(&match (damaged, repaired) {
        (0, _) => "all are what they should be\n".to_owned(),
        (damaged, repaired) => format!("{damaged} damaged, {repaired} of them fetched again\n"),
    });
    if !last.why.is_empty() {
        text.push_str(&last.why);
        text.push('\n');
    }
    out(&text)?;
    Ok(match damaged == repaired && last.why.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// `snapshotter-remote gc`.
pub(super) fn gc(asked: &GcHost) -> Result<ExitCode> {
    let daemon = Daemon::connect(&config(&asked.host)?.address)?;
    let request = GcRequest {
        dry_run: asked.dry_run,
    };
    let gone = daemon.call(async |mut client| client.gc(request).await)?;
    let verb = if asked.dry_run { "would go" } else { "went" };
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    out(&format!(
        "{} {verb}, of {} disk{} and {} chunk{}\n",
        bytes(gone.bytes),
        gone.disks,
        plural(gone.disks),
        gone.chunks,
        plural(gone.chunks)
    ))?;
    Ok(ExitCode::SUCCESS)
}
