//! A mount as a value that can be sent and stored; must not touch the system.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted: a path for a bind, a device, or a name of no meaning.
    pub source: String,
    /// Where, absolute: in the container for [`crate::apply_under`], unused by
    /// [`crate::apply_host`].
    pub target: String,
    /// Type of the file system; without meaning for a bind.
    pub fstype: String,
    /// How.
    pub options: MountOptions,
}

/// Option words in the form in which the kernel takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// MS_* flags that the words set.
    pub flags_set: u64,
    /// MS_* flags that the words clear, such as MS_RDONLY for `rw`.
    pub flags_clear: u64,
    /// Propagation types to set afterwards, in this order, each with or without MS_REC.
    pub propagation: Vec<u64>,
    /// MOUNT_ATTR_* to set on the whole tree (`rro`).
    pub attrs_set: u64,
    /// MOUNT_ATTR_* to clear on the whole tree (`rrw`).
    pub attrs_clear: u64,
    /// What is left for the file system, with commas.
    pub data: String,
    /// What the kernel has no flag for.
    pub extensions: Vec<Extension>,
}

/// An option that is work of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extension {
    /// `tmpcopyup`: a tmpfs begins with a copy of what it covers.
    TmpCopyUp,
    /// `idmap`, `ridmap`: owners are shown mapped (kernel 5.12).
    IdMap(IdMap),
}

/// How owners are mapped on a mount; without ranges it cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The mount alone or all below it too.
    pub scope: Scope,
    /// `uidMappings` of the mount.
    pub uids: Vec<IdRange>,
    /// `gidMappings` of the mount.
    pub gids: Vec<IdRange>,
}

/// How far a change of a mount goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The mount itself.
    Mount,
    /// With everything mounted below it.
    Tree,
}

/// A line of a uid_map or gid_map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id as the file system has it (`containerID`).
    pub inside: u32,
    /// First id as the mount shows it (`hostID`).
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl MountOptions {
    /// No options at all.
    #[must_use]
    pub fn none() -> Self {
        Self {
            flags_set: 0,
            flags_clear: 0,
            propagation: Vec::new(),
            attrs_set: 0,
            attrs_clear: 0,
            data: String::new(),
            extensions: Vec::new(),
        }
    }
}

impl Mount {
    /// Whether it shows an existing tree elsewhere.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.options.flags_set & crate::flags::BIND != 0
    }

    /// Whether it only changes a mount that is there.
    #[must_use]
    pub fn is_remount(&self) -> bool {
        self.options.flags_set & crate::flags::REMOUNT != 0
    }

    /// How it shows owners mapped, if it does.
    #[must_use]
    pub fn id_map(&self) -> Option<&IdMap> {
        let mut extensions = self.options.extensions.iter();
        extensions.find_map(|known| match known {
            Extension::IdMap(map) => Some(map),
            Extension::TmpCopyUp => None,
        })
    }

    /// Whether more is made in it after it was mounted, so that it can be read-only only then: a
    /// tmpfs, and whatever is mounted on /dev (as runc has it).
    #[must_use]
    pub fn is_filled_later(&self) -> bool {
        let on_dev = Path::new(&self.target) == Path::new("/dev");
        !self.is_bind() && (self.fstype == "tmpfs" || on_dev)
    }
}
