//! What a back end keeps with a snapshot, as the text of its note.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use snapshot_core::{Error, Note, Result};

use crate::limit::Group;

/// The file system in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fs {
    /// ext4.
    Ext4,
    /// xfs.
    Xfs,
}

/// A quota group of btrfs above those of several subvolumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedQgroup {
    /// Its number in level 1.
    pub number: u64,
    /// Whose it is.
    pub group: Group,
}

/// Where a snapshot's contents are and what they are counted by. A later version adds fields and
/// kinds; it never gives one another meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum Record {
    /// Plain directories that nothing counts.
    Plain,
    /// Directories in a project; in the pool too.
    Prjquota {
        /// The project's id.
        project: u32,
        /// Who shares it.
        #[serde(skip_serializing_if = "Option::is_none")]
        group: Option<Group>,
    },
    /// A subvolume.
    Btrfs {
        /// Its number.
        subvolume: u64,
        /// The limit that it shares.
        #[serde(skip_serializing_if = "Option::is_none")]
        shared: Option<SharedQgroup>,
    },
    /// A file system in an image.
    Image {
        /// Of which kind.
        fs: Fs,
        /// How many inodes it was made for; none in particular without it.
        #[serde(skip_serializing_if = "Option::is_none")]
        inodes: Option<u64>,
        /// Bytes that it needed for itself while it was empty.
        own_bytes: u64,
        /// The same of inodes.
        own_inodes: u64,
    },
    /// A tmpfs.
    Tmpfs {
        /// Its size at first, without a limit that is changed later.
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// The same of inodes.
        #[serde(skip_serializing_if = "Option::is_none")]
        inodes: Option<u64>,
    },
}

impl Record {
    /// Reads a note.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a note that was written by a later version, or by nobody.
    pub fn from_note(note: &Note) -> Result<Self> {
        serde_json::from_str(&note.0).map_err(|error| {
            Error::Invalid(format!(
                "the note {:?} of the snapshot is not understood ({error}); a later version of \
                 snapshotter-quota may have written it",
                note.0
            ))
        })
    }

    /// Writes a note.
    #[must_use]
    pub fn to_note(&self) -> Note {
        Note(serde_json::to_string(self).expect("a record has no maps with other keys than text"))
    }

    /// Who shares its limit.
    #[must_use]
    pub fn group(&self) -> Option<&Group> {
        match self {
            Self::Prjquota { group, .. } => group.as_ref(),
            Self::Btrfs { shared, .. } => shared.as_ref().map(|shared| &shared.group),
            Self::Plain | Self::Image { .. } | Self::Tmpfs { .. } => None,
        }
    }

    /// The writable directory, which is the layer when it is committed.
    #[must_use]
    pub fn upper(&self, directory: &Path) -> PathBuf {
        self.folder(directory).join("fs")
    }

    /// The working directory of overlay, on the same file system.
    #[must_use]
    pub fn work(&self, directory: &Path) -> PathBuf {
        self.folder(directory).join("work")
    }

    /// What holds both. Not the directory of the snapshot where a limit is on a whole subvolume
    /// or file system: the sidecar file must be writable when the snapshot is full.
    #[must_use]
    pub fn folder(&self, directory: &Path) -> PathBuf {
        match self {
            Self::Plain | Self::Prjquota { .. } => directory.to_owned(),
            Self::Btrfs { .. } | Self::Image { .. } | Self::Tmpfs { .. } => {
                directory.join(Self::SEPARATE)
            }
        }
    }

    /// Name of the subvolume or mount point in a snapshot's directory.
    pub const SEPARATE: &'static str = "rw";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group {
        Group {
            namespace: "k8s.io".to_owned(),
            name: "pod-1".parse().unwrap(),
        }
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let check = |record: Record, text: &str, upper: &str| {
            let note = record.to_note();
            assert_eq!(note.0, text);
            assert_eq!(Record::from_note(&note).unwrap(), record);
            assert_eq!(record.upper(Path::new("/r/7")), Path::new(upper));
        };
        check(Record::Plain, r#"{"backend":"plain"}"#, "/r/7/fs");
        check(
            Record::Prjquota {
                project: 7,
                group: None,
            },
            r#"{"backend":"prjquota","project":7}"#,
            "/r/7/fs",
        );
        check(
            Record::Prjquota {
                project: 7,
                group: Some(group()),
            },
            r#"{"backend":"prjquota","project":7,"group":{"namespace":"k8s.io","name":"pod-1"}}"#,
            "/r/7/fs",
        );
        check(
            Record::Btrfs {
                subvolume: 257,
                shared: Some(SharedQgroup {
                    number: 9,
                    group: group(),
                }),
            },
            concat!(
                r#"{"backend":"btrfs","subvolume":257,"shared":{"number":9,"#,
                r#""group":{"namespace":"k8s.io","name":"pod-1"}}}"#
            ),
            "/r/7/rw/fs",
        );
        check(
            Record::Image {
                fs: Fs::Xfs,
                inodes: None,
                own_bytes: 5,
                own_inodes: 3,
            },
            r#"{"backend":"image","fs":"xfs","own_bytes":5,"own_inodes":3}"#,
            "/r/7/rw/fs",
        );
        check(
            Record::Tmpfs {
                bytes: Some(4096),
                inodes: None,
            },
            r#"{"backend":"tmpfs","bytes":4096}"#,
            "/r/7/rw/fs",
        );
    }

    #[test]
    fn notes_that_are_not_ours_are_refused() {
        for text in [
            "",
            "{}",
            r#"{"backend":"zfs"}"#,
            r#"{"backend":"prjquota","project":-1}"#,
            r#"{"backend":"prjquota","project":7,"group":{"namespace":"a","name":"../b"}}"#,
            r#"{"backend":"tmpfs","later":1}"#,
        ] {
            let error = Record::from_note(&Note(text.to_owned())).unwrap_err();
            assert!(error.to_string().contains("later version"), "{error}");
        }
    }
}
