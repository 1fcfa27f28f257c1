//! Why a trial says nothing of what was tried: it writes, and the root takes nothing now. What
//! fills a disk can only be removed while a daemon serves.

use std::{fmt, path::Path};

use nix::sys::statvfs::{FsFlags, statvfs};
use snapshot_core::Error;

/// With less room a trial may fail by it, whatever its error says; mkfs has none to tell.
const TRIAL_BYTES: u64 = 64 << 20;

/// What keeps a root from being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// Its file system, a quota there, or what must stay free of it.
    Full,
    /// Its file system is mounted read-only.
    ReadOnly,
}

impl Hindrance {
    /// What a trial on `root` failed by, if it was that.
    pub(crate) fn of(error: &Error, root: &Path) -> Option<Self> {
        if error.is_read_only() {
            return Some(Self::ReadOnly);
        }
        if error.is_full() {
            return Some(Self::Full);
        }
        let about = statvfs(root).ok()?;
        if about.flags().contains(FsFlags::ST_RDONLY) {
            return Some(Self::ReadOnly);
        }
        let free = about.blocks_available() * about.fragment_size();
        (free < TRIAL_BYTES).then_some(Self::Full)
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => {
                "the disk is full: remove containers or images, or make it larger; nothing new is \
                 made until then"
            }
            Self::ReadOnly => {
                "the root is read-only: mount it writable and start the daemon again; nothing is \
                 changed until then"
            }
        })
    }
}
