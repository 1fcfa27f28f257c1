//! One request of a client, or one thing that a container does, and what comes of it.

use std::collections::BTreeMap;

use integration::conformance::Labels;
use proto::snapshots::{Info, Kind};
use tonic::Status;

/// Files of a snapshot and their lengths; their contents follow from their names.
pub(crate) type Files = BTreeMap<String, u64>;

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Prepare or View.
    Create {
        kind: Kind,
        key: String,
        parent: Option<String>,
        labels: Labels,
    },
    Commit {
        key: String,
        name: String,
        labels: Labels,
    },
    Remove {
        key: String,
    },
    /// All labels, or those that the mask names.
    Update {
        key: String,
        labels: Labels,
        mask: Vec<String>,
    },
    Stat {
        key: String,
    },
    List {
        filter: String,
    },
    Usage {
        key: String,
    },
    /// With the files that must be in the layers, nearest first.
    Mounts {
        key: String,
        layers: Vec<Files>,
    },
    Cleanup,
    /// A container writes a file.
    Write {
        key: String,
        file: String,
        bytes: u64,
    },
    /// A container writes until it is refused, and a little more than that many bytes must be.
    Fill {
        key: String,
        bytes: u64,
        leave: Leave,
    },
}

/// What becomes of the file that filled a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    File,
    Nothing,
}

/// How an operation uses a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Shared,
    Exclusive,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Nothing,
    Info(Info),
    Infos(Vec<Info>),
    Usage((i64, i64)),
    /// Whether all was written.
    Written(bool),
    /// It was answered, but what was said or found there is wrong.
    Wrong(String),
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Done(Answer),
    Refused(Status),
    /// The daemon was killed before it answered.
    Lost,
}

impl Operation {
    /// The names it uses. What another does to them meanwhile may decide what comes of it.
    pub(crate) fn names(&self, parent_of: impl Fn(&str) -> Option<String>) -> Names {
        use Access::{Exclusive, Shared};
        let mut names = Names::new();
        match self {
            Self::Create { key, parent, .. } => {
                names.push((key.clone(), Exclusive));
                names.extend(parent.iter().map(|parent| (parent.clone(), Shared)));
            }
            Self::Commit { key, name, .. } => {
                names.push((key.clone(), Exclusive));
                names.push((name.clone(), Exclusive));
            }
            Self::Remove { key } => {
                names.push((key.clone(), Exclusive));
                names.extend(parent_of(key).map(|parent| (parent, Shared)));
            }
            Self::Update { key, .. } | Self::Write { key, .. } | Self::Fill { key, .. } => {
                names.push((key.clone(), Exclusive));
            }
            Self::Stat { key } | Self::Usage { key } | Self::Mounts { key, .. } => {
                names.push((key.clone(), Shared));
            }
            Self::List { .. } | Self::Cleanup => {}
        }
        names
    }
}

pub(crate) type Names = Vec<(String, Access)>;
