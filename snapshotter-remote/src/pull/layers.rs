//! The layers of an image as snapshots: those that the snapshotter has as disks are there at once, others are fetched and unpacked.

use std::{
    io::{self, Read},
    time::{SystemTime, UNIX_EPOCH},
};

use disk::Digest;
use proto::content::{WriteAction, WriteContentRequest};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

use super::{
    containerd::{Containerd, Prepared, begin_of, named},
    registry::{Registry, apart},
};
use crate::{error::Result, image::Descriptor, manifest::chain_ids};

/// Bytes of a message with part of a layer.
const PART_BYTES: u64 = 1 << 20;

/// Parts that wait for containerd.
const PARTS_WAITING: usize = 4;

/// What became of the layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// That were there before.
    pub(super) known: usize,
    /// That the snapshotter has as disks.
    pub(super) ready: usize,
    /// That were fetched and unpacked.
    pub(super) unpacked: usize,
}

/// Sees to it that each prefix of the layers is a snapshot.
///
/// # Errors
/// What keeps one of them from it; those below it stay until the lease ends.
pub(super) async fn make(
    containerd: &Containerd,
    registry: &Registry,
    snapshotter: &str,
    layers: &[(Descriptor, Digest)],
) -> Result<Made> {
    let diff_ids: Vec<Digest> = layers.iter().map(|(_, diff_id)| *diff_id).collect();
    let mut made = Made::default();
    let mut parent = String::new();
    for ((layer, diff_id), chain_id) in layers.iter().zip(chain_ids(&diff_ids)) {
        let name = named(chain_id);
        let is_known = containerd.has_snapshot(snapshotter, &name).await?;
        let key = extract_key(&name);
        // Also for one that is known: that is what keeps it for the lease.
        match containerd
            .prepare(snapshotter, (&key, &parent), chain_id)
            .await?
        {
            Prepared::Ready if is_known => made.known += 1,
            Prepared::Ready => made.ready += 1,
            Prepared::Mounts(mounts) => {
                let unpacked = async {
                    fetch(containerd, registry, layer).await?;
                    let found = containerd.apply(layer, mounts).await?;
                    if found != named(*diff_id) {
                        return Err(registry.not(format!(
                            "layer sha256:{} is unpacked {found}, and its config says sha256:{diff_id}",
                            layer.digest
                        )));
                    }
                    containerd.commit(snapshotter, &key, chain_id).await
                };
                if let Err(error) = unpacked.await {
                    // What it failed for is told; a lease that ends takes it away as well.
                    drop(containerd.remove(snapshotter, &key).await);
                    return Err(error);
                }
                made.unpacked += 1;
            }
        }
        parent = name;
    }
    Ok(made)
}

/// As containerd's unpacker names what it unpacks into.
fn extract_key(chain_id: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (nanos, pid) = (now.subsec_nanos(), std::process::id());
    format!("extract-{nanos}-{pid} {chain_id}")
}

/// A layer from the registry into containerd's content.
async fn fetch(containerd: &Containerd, registry: &Registry, layer: &Descriptor) -> Result<()> {
    let mut blob = registry.blob(layer);
    let (sender, receiver) = mpsc::channel(PARTS_WAITING);
    let begin = WriteContentRequest {
        total: i64::try_from(layer.size).unwrap_or(i64::MAX),
        ..begin_of(layer.digest)
    };
    let send = apart(move || -> io::Result<()> {
        let mut at: u64 = 0;
        let message = |action: WriteAction, at: u64, data: Vec<u8>| WriteContentRequest {
            action: action.into(),
            offset: i64::try_from(at).unwrap_or(i64::MAX),
            data,
            ..begin.clone()
        };
        loop {
            let mut data = Vec::new();
            blob.by_ref().take(PART_BYTES).read_to_end(&mut data)?;
            let count = data.len() as u64;
            if count == 0 {
                break;
            }
            if sender
                .blocking_send(message(WriteAction::Write, at, data))
                .is_err()
            {
                // It is there already, or containerd has said why not.
                return Ok(());
            }
            at += count;
        }
        // As above.
        drop(sender.blocking_send(message(WriteAction::Commit, at, Vec::new())));
        Ok(())
    });
    let take = containerd.put_stream(ReceiverStream::new(receiver));
    let (sent, taken) = tokio::join!(send, take);
    sent.map_err(|error| registry.not(format!("layer sha256:{}: {error}", layer.digest)))?;
    taken
}

#[cfg(test)]
mod tests {
    use super::extract_key;

    #[test]
    fn a_key_is_as_containerd_s_own() {
        let key = extract_key("sha256:ab");
        assert!(
            key.starts_with("extract-") && key.ends_with(" sha256:ab"),
            "{key}"
        );
    }
}
