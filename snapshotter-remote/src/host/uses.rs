//! Which snapshots stand on which disk, and which disks on which blob: what nobody stands on goes from the
//! cache. Touches no disk.

use std::collections::{BTreeMap, BTreeSet};

use disk::Digest;
use snapshot_core::SnapshotId;

/// By number, so that nothing is counted twice or taken back for another.
#[derive(Debug, Default)]
pub(super) struct Uses {
    disks: BTreeMap<Digest, BTreeSet<SnapshotId>>,
    blobs: BTreeMap<[u8; 32], BTreeSet<Digest>>,
}

impl Uses {
    /// A snapshot stands on that disk, which has these blobs.
    pub(super) fn begin(
        &mut self,
        id: SnapshotId,
        chain_id: Digest,
        blobs: impl IntoIterator<Item = [u8; 32]>,
    ) {
        self.disks.entry(chain_id).or_default().insert(id);
        for blob in blobs {
            self.blobs.entry(blob).or_default().insert(chain_id);
        }
    }

    /// It is gone: whether the disk is used by nobody any more, and the blobs that are not.
    pub(super) fn end(&mut self, id: SnapshotId, chain_id: Digest) -> Option<Vec<[u8; 32]>> {
        let users = self.disks.get_mut(&chain_id)?;
        if !users.remove(&id) || !users.is_empty() {
            return None;
        }
        self.disks.remove(&chain_id);
        let mut unused = Vec::new();
        self.blobs.retain(|blob, disks| {
            disks.remove(&chain_id);
            if disks.is_empty() {
                unused.push(*blob);
            }
            !disks.is_empty()
        });
        Some(unused)
    }

    /// Whether somebody stands on that disk.
    pub(super) fn has_disk(&self, chain_id: Digest) -> bool {
        self.disks.contains_key(&chain_id)
    }

    /// Whether a disk that somebody stands on has that blob.
    pub(super) fn has_blob(&self, blob: [u8; 32]) -> bool {
        self.blobs.contains_key(&blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_stands_on_is_told_once() {
        let (lower, upper) = (Digest([1; 32]), Digest([2; 32]));
        let (a, b) = ([3; 32], [4; 32]);
        let id = SnapshotId;
        let mut uses = Uses::default();
        uses.begin(id(1), lower, [a]);
        uses.begin(id(2), upper, [a, b]);
        uses.begin(id(3), upper, [a, b]);
        assert_eq!(uses.end(id(9), upper), None, "it never stood there");
        assert_eq!(uses.end(id(2), upper), None);
        assert_eq!(uses.end(id(2), upper), None);
        assert_eq!(uses.end(id(3), upper), Some(vec![b]));
        assert!(uses.has_blob(a) && !uses.has_blob(b) && !uses.has_disk(upper));
        assert_eq!(uses.end(id(1), lower), Some(vec![a]));
        assert_eq!(uses.end(id(1), lower), None);
    }
}
