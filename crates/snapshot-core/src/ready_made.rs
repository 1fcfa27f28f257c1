//! Layers that a driver has before they are pulled, under the names that they have in the store. Touches no
//! disk.
//!
//! containerd says with a label which layer is going to be unpacked into a snapshot. When it is told that
//! the snapshot exists, it looks for a committed one with the same label and parent, takes that, and neither
//! fetches the layer nor unpacks it (core/metadata/snapshot.go, `createSnapshot`).

use crate::{Key, Kind, Labels, Result, Snapshot, store::View};

/// The label that names the layer: the chainID of it and all below it, as far as containerd sets it.
pub const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// What is known of the layer that is going to be unpacked.
pub(crate) enum ReadyMade {
    /// Nobody said which it is, or containerd would not find it: it is unpacked.
    NotAsked,
    /// It is there.
    Exists,
    /// The driver knows; it would have this name.
    Unknown(Key),
}

/// Looks for the layer that the labels name, on that parent. Its name is always the same, so that there is
/// one, however many ask at once.
pub(crate) fn look(
    view: &View,
    kind: Kind,
    labels: &Labels,
    parent: Option<&Snapshot>,
) -> Result<ReadyMade> {
    let Some(target) = labels.get(TARGET_LABEL).filter(|_| kind == Kind::Active) else {
        return Ok(ReadyMade::NotAsked);
    };
    let on = parent.map_or_else(String::new, |parent| format!(" on {}", parent.id));
    let name = Key::new(format!("ready-made {target}{on}"))?;
    let Some(found) = view.find(&name)? else {
        return Ok(ReadyMade::Unknown(name));
    };
    // Its labels may have been changed since.
    let has_target = found.info.labels.get(TARGET_LABEL) == Some(target);
    Ok(if has_target && found.info.kind == Kind::Committed {
        ReadyMade::Exists
    } else {
        ReadyMade::NotAsked
    })
}
