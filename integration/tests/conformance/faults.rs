//! What a snapshotter may do wrong, one thing each, and which cases of the suite must then fail.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
};

use proto::{
    snapshots::{Info, Kind, UpdateSnapshotRequest},
    types::Mount,
};
use tonic::{Code, Response, Status};

/// One thing that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is.
    Nothing,
    /// List calls views active.
    ViewsAreListedAsActive,
    /// List gives everything, whatever was asked for.
    FiltersAreIgnored,
    /// A Stat during a List gets no answer.
    ListsHoldUpStats,
    /// Stat calls active snapshots committed.
    ActiveIsToldAsCommitted,
    /// Stat calls committed snapshots active.
    CommittedIsToldAsActive,
    /// Stat tells no parents.
    ParentsAreNotTold,
    /// After a Commit the key is still there for Stat.
    CommittedKeysStay,
    /// A key in use is taken to mean the snapshot that has it.
    KeysInUseAreAccepted,
    /// The removal of a snapshot with children is said to be done.
    ParentsAreRemoved,
    /// It is refused without a word.
    RefusalsSayNothing,
    /// Keys and names of removed snapshots cannot be used again.
    NamesAreUsedUp,
    /// Update changes all labels whatever the mask says.
    MasksAreIgnored,
    /// The answer to Update has not all labels.
    UpdatesLoseALabel,
    /// Update lets a snapshot be made again.
    UpdatesChangeTheBeginning,
    /// What Update cannot change is refused as something internal.
    MasksAreRefusedAsUnknown,
    /// The root of a new snapshot has the mode of a private directory.
    RootsArePrivate,
    /// Views can be written to.
    ViewsAreWritable,
    /// A new directory in the place of a removed one shows what the old one had.
    RemovedDirectoriesShowThrough,
    /// What a layer removed is back when it is committed.
    RemovedFilesComeBack,
    /// A file of the same size, time, mode and owner counts as unchanged.
    SameSizeIsUnchanged,
    /// Owners are lost when a layer is committed.
    OwnersAreLost,
    /// Layers below the hundredth are left out.
    DeepLayersAreCut,
    /// Directories of lower layers cannot be renamed.
    DirectoriesCannotBeRenamed,
    /// Directories of lower layers can be renamed: this is right, and stock overlayfs cannot.
    DirectoriesCanBeRenamed,
    /// The second connection gets no answer.
    OneClientIsServed,
}

/// Every fault with the cases that must fail, which are the ones that look at it. Between them
/// every case fails at least once.
pub(crate) const FAULTS: &[(Fault, &[&str])] = &[
    (Fault::Nothing, &[]),
    (Fault::ViewsAreListedAsActive, &["StatInWalk"]),
    (Fault::FiltersAreIgnored, &["Walk"]),
    (Fault::ListsHoldUpStats, &["StatInWalk"]),
    (
        Fault::ActiveIsToldAsCommitted,
        &["Basic", "StatActive", "StatInWalk", "Update"],
    ),
    (
        Fault::CommittedIsToldAsActive,
        &["Basic", "StatComitted", "StatInWalk", "Update"],
    ),
    (
        Fault::ParentsAreNotTold,
        &["Basic", "StatInWalk", "TransitivityTest", "Update"],
    ),
    (Fault::CommittedKeysStay, &["Basic"]),
    (Fault::KeysInUseAreAccepted, &["PreareViewFailingtest"]),
    (
        Fault::ParentsAreRemoved,
        &["Basic", "RemoveIntermediateSnapshot"],
    ),
    (Fault::RefusalsSayNothing, &["Basic"]),
    (Fault::NamesAreUsedUp, &["Remove"]),
    (Fault::MasksAreIgnored, &["Update"]),
    (Fault::UpdatesLoseALabel, &["Update"]),
    (Fault::UpdatesChangeTheBeginning, &["Update"]),
    (Fault::MasksAreRefusedAsUnknown, &["Update"]),
    (Fault::RootsArePrivate, &["RootPermission"]),
    (Fault::ViewsAreWritable, &["ViewReadonly"]),
    (
        Fault::RemovedDirectoriesShowThrough,
        &[
            "128LayersMount",
            "DirectoryPermissionOnCommit",
            "RemoveDirectoryInLowerLayer",
        ],
    ),
    (
        Fault::RemovedFilesComeBack,
        &[
            "Basic",
            "DeletedFilesInChildSnapshot",
            "DirectoryPermissionOnCommit",
            "MoveFileFromLowerLayer",
            "Rename",
        ],
    ),
    (Fault::SameSizeIsUnchanged, &["LayerFileupdate"]),
    (
        Fault::OwnersAreLost,
        &["Chown", "DirectoryPermissionOnCommit"],
    ),
    (Fault::DeepLayersAreCut, &["128LayersMount"]),
    (Fault::DirectoriesCannotBeRenamed, &["Rename"]),
    (Fault::DirectoriesCanBeRenamed, &[]),
    (Fault::OneClientIsServed, &["CloseTwice"]),
];

/// What a faulty snapshotter remembers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Key and name of each Commit.
    pub(crate) commits: Vec<(String, String)>,
    /// What was removed.
    pub(crate) removed: BTreeSet<String>,
    /// No other request came since the last List.
    pub(crate) is_listing: bool,
}

impl Fault {
    /// True when it concerns what is mounted, or the making of layers; the others change answers to
    /// Stat, List, Update and Remove, or take names away.
    pub(crate) fn is_of_layers(self) -> bool {
        matches!(
            self,
            Self::Nothing
                | Self::RootsArePrivate
                | Self::ViewsAreWritable
                | Self::RemovedDirectoriesShowThrough
                | Self::RemovedFilesComeBack
                | Self::SameSizeIsUnchanged
                | Self::OwnersAreLost
                | Self::DeepLayersAreCut
                | Self::DirectoriesCannotBeRenamed
                | Self::DirectoriesCanBeRenamed
        )
    }

    /// Before Prepare, View and Commit, with the name that is to be made.
    pub(crate) fn before_making(self, memory: &mut Memory, name: &str) -> Result<(), Status> {
        memory.is_listing = false;
        if self == Self::NamesAreUsedUp && memory.removed.contains(name) {
            return Err(Status::already_exists("it was there once"));
        }
        Ok(())
    }

    /// True when this refusal is answered with the mounts of what exists.
    pub(crate) fn accepts(self, status: &Status) -> bool {
        self == Self::KeysInUseAreAccepted && status.code() == Code::AlreadyExists
    }

    /// After Prepare.
    pub(crate) fn prepared(self, mounts: &mut [Mount]) -> Result<(), Status> {
        match self {
            Self::RootsArePrivate => {
                let private = fs::Permissions::from_mode(0o700);
                fs::set_permissions(upper(mounts)?, private)?;
            }
            Self::DirectoriesCannotBeRenamed => add_to_overlay(mounts, "redirect_dir=off"),
            Self::DirectoriesCanBeRenamed => add_to_overlay(mounts, "redirect_dir=on"),
            _ => self.cut(mounts),
        }
        Ok(())
    }

    /// After View.
    pub(crate) fn viewed(self, mounts: &mut [Mount]) {
        match self {
            Self::ViewsAreWritable => {
                for option in mounts.iter_mut().flat_map(|mount| &mut mount.options) {
                    if option == "ro" {
                        "rw".clone_into(option);
                    }
                }
            }
            // The marks are in trusted.overlay.opaque, and it looks for user.overlay.opaque.
            Self::RemovedDirectoriesShowThrough => add_to_overlay(mounts, "userxattr"),
            Self::DirectoriesCanBeRenamed => add_to_overlay(mounts, "redirect_dir=follow"),
            _ => self.cut(mounts),
        }
    }

    fn cut(self, mounts: &mut [Mount]) {
        if self != Self::DeepLayersAreCut {
            return;
        }
        for option in mounts.iter_mut().flat_map(|mount| &mut mount.options) {
            if let Some(lower) = option.strip_prefix("lowerdir=") {
                let kept: Vec<_> = lower.split(':').take(100).collect();
                *option = format!("lowerdir={}", kept.join(":"));
            }
        }
    }

    /// Before Commit, with the mounts of the active snapshot.
    pub(crate) fn before_commit(self, mounts: &[Mount]) -> Result<(), Status> {
        match self {
            Self::OwnersAreLost => {
                for_each_below(&upper(mounts)?, &mut |path| lchown(path, Some(0), Some(0)))?;
            }
            Self::RemovedFilesComeBack => for_each_below(&upper(mounts)?, &mut |path| {
                let data = fs::symlink_metadata(path)?;
                if data.file_type().is_char_device() && data.rdev() == 0 {
                    fs::remove_file(path)?;
                }
                Ok(())
            })?,
            Self::SameSizeIsUnchanged => {
                let top = upper(mounts)?;
                for_each_below(&top, &mut |path| {
                    let below = path.strip_prefix(&top).expect("it lies below it");
                    let old = lowers(mounts).into_iter().map(|lower| lower.join(below));
                    if old.into_iter().any(|old| looks_the_same(&old, path)) {
                        fs::remove_file(path)?;
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    }

    /// After Remove.
    pub(crate) fn removed(
        self,
        answer: Result<Response<()>, Status>,
    ) -> Result<Response<()>, Status> {
        match (self, answer) {
            (Self::ParentsAreRemoved, Err(status)) if status.code() == Code::FailedPrecondition => {
                Ok(Response::new(()))
            }
            (Self::RefusalsSayNothing, Err(status)) => Err(Status::new(status.code(), "no")),
            (_, answer) => answer,
        }
    }

    /// The key a Stat is about in truth.
    pub(crate) fn stat_key(self, memory: &Memory, key: &str) -> String {
        let committed = memory.commits.iter().find(|(from, _)| from == key);
        match committed {
            Some((_, name)) if self == Self::CommittedKeysStay => name.clone(),
            _ => key.to_owned(),
        }
    }

    /// After Stat.
    pub(crate) fn stated(self, info: &mut Info) {
        match (self, info.kind()) {
            (Self::ActiveIsToldAsCommitted, Kind::Active) => info.set_kind(Kind::Committed),
            (Self::CommittedIsToldAsActive, Kind::Committed) => info.set_kind(Kind::Active),
            (Self::ParentsAreNotTold, _) => info.parent.clear(),
            _ => {}
        }
    }

    /// Of each snapshot that is listed.
    pub(crate) fn listed(self, info: &mut Info) {
        if self == Self::ViewsAreListedAsActive && info.kind() == Kind::View {
            info.set_kind(Kind::Active);
        }
    }

    /// Before Update.
    pub(crate) fn before_update(self, message: &mut UpdateSnapshotRequest) {
        if self == Self::MasksAreIgnored {
            message.update_mask = None;
        }
    }

    /// After an Update that was refused.
    pub(crate) fn update_refused(self, status: Status) -> Status {
        match self {
            Self::MasksAreRefusedAsUnknown => Status::unknown(status.message()),
            _ => status,
        }
    }

    /// After Update.
    pub(crate) fn updated(self, info: &mut Info) {
        match self {
            Self::UpdatesLoseALabel => drop(info.labels.pop_first()),
            Self::UpdatesChangeTheBeginning => info.created_at = info.updated_at,
            _ => {}
        }
    }
}

fn add_to_overlay(mounts: &mut [Mount], option: &str) {
    for mount in mounts.iter_mut().filter(|mount| mount.r#type == "overlay") {
        mount.options.push(option.to_owned());
    }
}

/// The directory that takes what is written.
fn upper(mounts: &[Mount]) -> Result<PathBuf, Status> {
    let mount = mounts
        .first()
        .ok_or_else(|| Status::internal("there is no mount"))?;
    let upper = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="));
    Ok(PathBuf::from(upper.unwrap_or(&mount.source)))
}

fn lowers(mounts: &[Mount]) -> Vec<PathBuf> {
    let options = mounts.iter().flat_map(|mount| &mount.options);
    options
        .filter_map(|option| option.strip_prefix("lowerdir="))
        .flat_map(|lower| lower.split(':').map(PathBuf::from))
        .collect()
}

fn looks_the_same(old: &Path, new: &Path) -> bool {
    let [old, new] = [old, new].map(fs::symlink_metadata);
    let (Ok(old), Ok(new)) = (old, new) else {
        return false;
    };
    let looks = |data: &fs::Metadata| {
        let time = (data.mtime(), data.mtime_nsec());
        (data.len(), time, data.mode(), data.uid(), data.gid())
    };
    old.is_file() && new.is_file() && looks(&old) == looks(&new)
}

/// Visits everything below a directory, children first.
fn for_each_below(
    directory: &Path,
    visit: &mut dyn FnMut(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() {
            for_each_below(&path, visit)?;
        }
        visit(&path)?;
    }
    Ok(())
}
