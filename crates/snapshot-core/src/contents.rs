//! The directories in a snapshot's directory that an overlay is made of. What is in them is the
//! container's.

use std::{
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown},
    path::Path,
};

use crate::{Error, IdMap, Kind, NewSnapshot, Result, overlay};

/// Makes `fs` and, for an active snapshot, `work` in a new snapshot's directory: `fs` with mode
/// 0755 whatever the umask, and the owner that a container's root needs. That is the mapped root
/// of the snapshot's labels, or else the owner of the layer below.
///
/// # Errors
/// [`Error::Invalid`] for labels that map owners in a way that cannot be; what keeps them from
/// being made.
pub fn make_contents(new: &NewSnapshot<'_>, directory: &Path) -> Result<()> {
    let owner = match IdMap::from_labels(new.labels)? {
        Some(map) => Some(map.root()?),
        None => owner_below(new, directory)?,
    };
    let contents = directory.join(overlay::CONTENTS);
    make(&contents, 0o755)?;
    if let Some((user, group)) = owner {
        let owned = lchown(&contents, Some(user), Some(group));
        owned.map_err(Error::io("change the owner of", &contents))?;
    }
    if new.kind == Kind::Active {
        make(&directory.join(overlay::WORK), 0o711)?;
    }
    Ok(())
}

fn owner_below(new: &NewSnapshot<'_>, directory: &Path) -> Result<Option<(u32, u32)>> {
    let Some(parent) = new.parents.first() else {
        return Ok(None);
    };
    let below = directory.with_file_name(parent.id.to_string());
    let below = below.join(overlay::CONTENTS);
    let about = fs::symlink_metadata(&below).map_err(Error::io("look at", below))?;
    Ok(Some((about.uid(), about.gid())))
}

fn make(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().mode(mode).create(path);
    made.map_err(Error::io("make", path))?;
    let set = fs::set_permissions(path, Permissions::from_mode(mode));
    set.map_err(Error::io("set the mode of", path))
}
