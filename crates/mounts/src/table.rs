//! The one table of option words (runtime-spec config.md, Linux mount options; mount(8)).

use sys::mount_api as api;

use crate::flags as ms;

/// What a word does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing, as `defaults`.
    Nothing,
    /// Sets MS_* flags.
    Set(u64),
    /// Clears MS_* flags.
    Clear(u64),
    /// Sets the propagation type.
    Propagation(u64),
    /// Sets MOUNT_ATTR_* on the whole tree.
    AttrSet(u64),
    /// Clears MOUNT_ATTR_* on the whole tree.
    AttrClear(u64),
    /// Chooses how the whole tree keeps access times: one of several values in a mask.
    AttrAtime(u64),
    /// Goes to the file system, although it is a word we know.
    Data,
    /// `tmpcopyup`.
    TmpCopyUp,
    /// `idmap`.
    IdMap,
    /// `ridmap`.
    IdMapTree,
}

use Effect::{AttrAtime, AttrClear, AttrSet, Clear, Propagation, Set};

/// Every word we know, by alphabet.
///
/// `acl` and `noacl` go to the file system: MS_POSIXACL is not mount(2)'s to set (runc#3738).
pub(crate) const TABLE: &[(&str, Effect)] = &[
    ("acl", Effect::Data),
    ("async", Clear(ms::SYNCHRONOUS)),
    ("atime", Clear(ms::NOATIME)),
    ("bind", Set(ms::BIND)),
    ("defaults", Effect::Nothing),
    ("dev", Clear(ms::NODEV)),
    ("diratime", Clear(ms::NODIRATIME)),
    ("dirsync", Set(ms::DIRSYNC)),
    ("exec", Clear(ms::NOEXEC)),
    ("idmap", Effect::IdMap),
    ("iversion", Set(ms::I_VERSION)),
    ("lazytime", Set(ms::LAZYTIME)),
    ("loud", Clear(ms::SILENT)),
    ("mand", Set(ms::MANDLOCK)),
    ("noacl", Effect::Data),
    ("noatime", Set(ms::NOATIME)),
    ("nodev", Set(ms::NODEV)),
    ("nodiratime", Set(ms::NODIRATIME)),
    ("noexec", Set(ms::NOEXEC)),
    ("noiversion", Clear(ms::I_VERSION)),
    ("nolazytime", Clear(ms::LAZYTIME)),
    ("nomand", Clear(ms::MANDLOCK)),
    ("norelatime", Clear(ms::RELATIME)),
    ("nostrictatime", Clear(ms::STRICTATIME)),
    ("nosuid", Set(ms::NOSUID)),
    ("nosymfollow", Set(ms::NOSYMFOLLOW)),
    ("private", Propagation(ms::PRIVATE)),
    ("ratime", AttrAtime(api::MOUNT_ATTR_RELATIME)),
    ("rbind", Set(ms::BIND | ms::REC)),
    ("rdev", AttrClear(api::MOUNT_ATTR_NODEV)),
    ("rdiratime", AttrClear(api::MOUNT_ATTR_NODIRATIME)),
    ("relatime", Set(ms::RELATIME)),
    ("remount", Set(ms::REMOUNT)),
    ("rexec", AttrClear(api::MOUNT_ATTR_NOEXEC)),
    ("ridmap", Effect::IdMapTree),
    ("rnoatime", AttrAtime(api::MOUNT_ATTR_NOATIME)),
    ("rnodev", AttrSet(api::MOUNT_ATTR_NODEV)),
    ("rnodiratime", AttrSet(api::MOUNT_ATTR_NODIRATIME)),
    ("rnoexec", AttrSet(api::MOUNT_ATTR_NOEXEC)),
    ("rnorelatime", AttrClear(api::MOUNT_ATTR_RELATIME)),
    ("rnostrictatime", AttrAtime(api::MOUNT_ATTR_RELATIME)),
    ("rnosuid", AttrSet(api::MOUNT_ATTR_NOSUID)),
    ("rnosymfollow", AttrSet(api::MOUNT_ATTR_NOSYMFOLLOW)),
    ("ro", Set(ms::RDONLY)),
    ("rprivate", Propagation(ms::PRIVATE | ms::REC)),
    ("rrelatime", AttrAtime(api::MOUNT_ATTR_RELATIME)),
    ("rro", AttrSet(api::MOUNT_ATTR_RDONLY)),
    ("rrw", AttrClear(api::MOUNT_ATTR_RDONLY)),
    ("rshared", Propagation(ms::SHARED | ms::REC)),
    ("rslave", Propagation(ms::SLAVE | ms::REC)),
    ("rstrictatime", AttrAtime(api::MOUNT_ATTR_STRICTATIME)),
    ("rsuid", AttrClear(api::MOUNT_ATTR_NOSUID)),
    ("rsymfollow", AttrClear(api::MOUNT_ATTR_NOSYMFOLLOW)),
    ("runbindable", Propagation(ms::UNBINDABLE | ms::REC)),
    ("rw", Clear(ms::RDONLY)),
    ("shared", Propagation(ms::SHARED)),
    ("silent", Set(ms::SILENT)),
    ("slave", Propagation(ms::SLAVE)),
    ("strictatime", Set(ms::STRICTATIME)),
    ("suid", Clear(ms::NOSUID)),
    ("symfollow", Clear(ms::NOSYMFOLLOW)),
    ("sync", Set(ms::SYNCHRONOUS)),
    ("tmpcopyup", Effect::TmpCopyUp),
    ("unbindable", Propagation(ms::UNBINDABLE)),
];

/// What a word does; none when it is the file system's.
pub(crate) fn effect(word: &str) -> Option<Effect> {
    let at = TABLE.binary_search_by_key(&word, |(known, _)| known).ok()?;
    Some(TABLE[at].1)
}

/// Every option word with a meaning here, by alphabet, for `mountOptions` of the features document
/// (runtime-spec features.md).
#[must_use]
pub fn known_options() -> Vec<&'static str> {
    TABLE.iter().map(|(word, _)| *word).collect()
}
