//! How much of everything a layer may have, so that a small tar cannot use a large machine.

use crate::{
    attributes::Xattrs,
    error::{Error, Result},
};

/// Memory of a node beside its names and values, in bytes, roughly.
const NODE_BYTES: u64 = 200;

/// Limits of one layer. What is beyond is refused before memory or disk is used for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the tar, whiteouts included.
    pub entries_max: u64,
    /// Memory for names, link targets, attributes and maps of sparse files, in bytes.
    pub metadata_bytes_max: u64,
    /// One extension header of the tar (PAX records, a GNU long name) or map of a sparse file, in
    /// bytes. Go's archive/tar, which every stock containerd uses, has 1 MiB.
    pub header_bytes_max: u64,
    /// Length of the blob in bytes, holes of sparse files included.
    pub blob_bytes_max: u64,
}

impl Limits {
    /// What real images stay far below: 4 Mi entries, 512 MiB of metadata, 1 TiB of contents.
    pub const GENEROUS: Self = Self {
        entries_max: 4 << 20,
        metadata_bytes_max: 512 << 20,
        header_bytes_max: 1 << 20,
        blob_bytes_max: 1 << 40,
    };
}

/// What a layer has taken of its limits.
#[derive(Debug)]
pub(crate) struct Count {
    limits: Limits,
    entries: u64,
    metadata_bytes: u64,
}

impl Count {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: 0,
            metadata_bytes: 0,
        }
    }

    /// Counts an entry of that path and those attributes, with so many bytes of anything else.
    pub(crate) fn add(&mut self, path: &[u8], xattrs: &Xattrs, other_bytes: usize) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(Error::Limit {
                what: "entries in a layer",
                limit: self.limits.entries_max,
            });
        }
        let xattrs = xattrs.iter();
        let xattrs: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
        // Each part of a path may become a directory.
        let parts = path.split(|&byte| byte == b'/').count();
        let parts = u64::try_from(parts).unwrap_or(u64::MAX);
        let bytes = u64::try_from(path.len() + other_bytes + xattrs).unwrap_or(u64::MAX);
        self.metadata_bytes += bytes.saturating_add(NODE_BYTES.saturating_mul(parts));
        if self.metadata_bytes > self.limits.metadata_bytes_max {
            return Err(Error::Limit {
                what: "bytes of names and attributes in a layer",
                limit: self.limits.metadata_bytes_max,
            });
        }
        Ok(())
    }
}
