//! What disks add to the core: layers that are there before they are pulled, and overlays that stand on them.
//! Everything else is a plain overlay.

use std::path::{Path, PathBuf};

use disk::Digest;
use snapshot_core::{
    Chain, Committed, Driver, Labels, Mount, NewSnapshot, Note, OverlayOptions, PlainDriver,
    Remains, Result, Snapshot, TARGET_LABEL, Usage, overlay,
};

use super::{conversion::ConvertConfig, disks::Disks, files};
use crate::signature::digest;

/// What the note of a snapshot that is a disk begins with; the chainID follows.
const NOTE: &str = "disk ";

/// The driver.
#[derive(Debug)]
pub struct RemoteDriver {
    plain: PlainDriver,
    disks: std::sync::Arc<Disks>,
    convert: ConvertConfig,
}

impl RemoteDriver {
    /// Over these disks, mounted with these options; stores are asked to make others.
    pub(super) fn new(
        options: OverlayOptions,
        disks: std::sync::Arc<Disks>,
        convert: ConvertConfig,
    ) -> Self {
        Self {
            plain: PlainDriver::new(options),
            disks,
            convert,
        }
    }

    /// Sees to it that a snapshot that is a disk is mounted in its directory.
    fn attach(&self, snapshot: &Snapshot, directory: &Path) -> Result<()> {
        match disk_of(&snapshot.note) {
            Some(chain_id) => self
                .disks
                .attach(chain_id, &directory.join(overlay::CONTENTS)),
            None => Ok(()),
        }
    }
}

/// The disk that a snapshot is.
pub(super) fn disk_of(note: &Note) -> Option<Digest> {
    digest(note.0.strip_prefix(NOTE)?)
}

impl Driver for RemoteDriver {
    fn create(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Note> {
        if let Some(parent) = new.parents.first() {
            // Whose owner the new one takes.
            let below = directory.with_file_name(parent.id.to_string());
            self.attach(parent, &below)?;
        }
        self.plain.create(new, directory)
    }

    fn ready_made(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Option<Committed>> {
        let target = new.labels.get(TARGET_LABEL);
        let chain_id = target.and_then(|target| digest(target.strip_prefix("sha256:")?));
        let Some(chain_id) = chain_id else {
            return Ok(None);
        };
        let wanted = self.convert.wanted(new.labels);
        if !self.disks.begin(new.id, chain_id, wanted.as_ref()) {
            return Ok(None);
        }
        let made = files::make_directory(&directory.join(overlay::CONTENTS));
        if made.is_err() {
            self.disks.end(new.id, chain_id)?;
        }
        made?;
        Ok(Some(Committed {
            usage: None,
            note: Note(format!("{NOTE}{chain_id}")),
        }))
    }

    /// The nearest disk has everything that is below it, too.
    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>> {
        let mut parents = Vec::new();
        for (parent, directory) in &chain.parents {
            parents.push((parent.clone(), directory.clone()));
            if let Some(chain_id) = disk_of(&parent.note) {
                self.disks.is_used(chain.snapshot.id, chain_id);
                self.attach(parent, directory)?;
                break;
            }
        }
        self.plain.mounts(&Chain {
            snapshot: chain.snapshot.clone(),
            directory: chain.directory.clone(),
            parents,
        })
    }

    fn update(&self, snapshot: &Snapshot, directory: &Path, labels: &Labels) -> Result<()> {
        self.plain.update(snapshot, directory, labels)
    }

    fn usage(&self, snapshot: &Snapshot, directory: &Path) -> Result<Usage> {
        match disk_of(&snapshot.note) {
            Some(chain_id) => self.disks.usage(chain_id),
            None => self.plain.usage(snapshot, directory),
        }
    }

    fn commit(&self, snapshot: &Snapshot, directory: &Path) -> Result<Committed> {
        self.plain.commit(snapshot, directory)
    }

    fn release(&self, remains: &Remains) -> Result<()> {
        self.disks.is_left(remains.id);
        // Whatever the note says: nothing else is mounted there.
        let chain_id = remains.note.as_ref().and_then(disk_of);
        let target = remains.directory.join(overlay::CONTENTS);
        self.disks.detach(chain_id, &target)
    }

    fn forget(&self, remains: &Remains) -> Result<()> {
        match remains.note.as_ref().and_then(disk_of) {
            Some(chain_id) => self.disks.end(remains.id, chain_id),
            None => Ok(()),
        }
    }

    fn recover(&self, snapshots: &[(Snapshot, PathBuf)]) -> Result<()> {
        let disks = snapshots.iter();
        let disks = disks.filter_map(|(one, _)| Some((one.id, disk_of(&one.note)?)));
        self.disks.recover(disks)
    }
}
