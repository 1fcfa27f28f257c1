//! A snapshot as a value: its names, kind, labels and sizes. Touches no disk.

use std::{collections::BTreeMap, fmt};

use crate::{Error, Result};

/// Labels as containerd sends them: sorted, bounded by the service.
pub type Labels = BTreeMap<String, String>;

/// The name of a snapshot: unique among all kinds, chosen by containerd
/// (`NAMESPACE/NUMBER/NAME` when it comes from containerd's metadata layer).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Longest name, in bytes. containerd's own identifiers are far below.
    pub const BYTES_MAX: usize = 4096;

    /// Takes any non-empty text without a NUL; it never becomes a path.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty or too long name, or one with a NUL.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() {
            return Err(Error::Invalid("the key of a snapshot is empty".to_owned()));
        }
        if name.len() > Self::BYTES_MAX {
            return Err(Error::Invalid(format!(
                "the key of a snapshot has {} bytes, at most {} are taken",
                name.len(),
                Self::BYTES_MAX
            )));
        }
        if name.contains('\0') {
            return Err(Error::Invalid(format!("the key {name:?} contains a NUL")));
        }
        Ok(Self(name))
    }

    /// The name as containerd wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a snapshot, and the name of its directory. Given once, never again: not after
/// removal, not after a crash. A driver may derive what must not be reused from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What may be done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Mounted read-only.
    View,
    /// Mounted writable, until it is committed or removed.
    Active,
    /// Never mounted itself; the parent of others.
    Committed,
}

/// Nanoseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// What containerd sees of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its name.
    pub name: Key,
    /// The committed snapshot below it.
    pub parent: Option<Key>,
    /// What may be done with it.
    pub kind: Kind,
    /// When it was prepared, or committed.
    pub created: Timestamp,
    /// When its labels changed last.
    pub updated: Timestamp,
    /// Exactly what containerd set: a driver's own state goes into [`Note`].
    pub labels: Labels,
}

/// What a snapshot holds itself, its parents not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes allocated.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a driver wants to find again with a snapshot, in its own words; kept in the store and in
/// the sidecar file, so that it outlives both a crash and the loss of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note(pub String);

/// A snapshot as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number and directory.
    pub id: SnapshotId,
    /// What containerd sees.
    pub info: Info,
    /// What the driver keeps.
    pub note: Note,
    /// Counted at commit; `None` for a snapshot that can still change.
    pub usage: Option<Usage>,
}
