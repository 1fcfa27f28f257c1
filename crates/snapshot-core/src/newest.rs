//! What a root has, as its directories say, for who must know before it is opened. It takes no lock
//! and writes nothing.

use std::path::Path;

use crate::{
    Note, Result,
    directories::{self, Stage},
    store::Sidecar,
};

/// The notes of the snapshots below `root`, which may not be there yet, the newest first; none for
/// a snapshot whose sidecar file says nothing.
///
/// # Errors
/// What keeps the directories from being listed.
pub fn newest_notes(root: &Path) -> Result<impl Iterator<Item = Option<Note>>> {
    let folder = root.join(directories::SNAPSHOTS);
    let mut ids = directories::list(&folder)?;
    ids.retain(|(stage, _)| *stage == Stage::Published);
    ids.sort_unstable();
    Ok(ids.into_iter().rev().map(move |(_, id)| {
        match Sidecar::read(&folder.join(id.to_string())) {
            Ok(Sidecar::Whole(snapshot)) => Some(snapshot.note),
            Ok(Sidecar::Missing | Sidecar::Torn(_)) | Err(_) => None,
        }
    }))
}
