//! What a file has beside its contents (image-spec, layer.md, "File Attributes").

use std::collections::BTreeMap;

/// Extended attributes: values by full name (`security.capability`).
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A time of modification; also before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Since 1970, in seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that, below 10⁹.
    pub nanoseconds: u32,
}

/// Attributes of a file of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions with set-id bits and sticky bit, at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification, which EROFS gives for all times.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Attributes {
    /// Those of a directory that no layer describes. A tool that unpacks makes it with its own umask
    /// and clock; here it is always the same.
    pub(crate) const IMPLICIT: Self = Self {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            seconds: 0,
            nanoseconds: 0,
        },
        xattrs: Xattrs::new(),
    };
}
