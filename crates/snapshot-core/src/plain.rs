//! A driver that only makes overlays, as stock overlayfs does: for tests, and the measure for
//! others.

use std::path::{Path, PathBuf};

use crate::{
    Chain, Committed, Driver, Error, IdMap, Kind, Labels, Mount, NewSnapshot, Note, OverlayOptions,
    Remains, Result, Snapshot, Usage, make_contents, overlay, tree,
};

/// Directories and overlays, nothing else.
#[derive(Debug)]
pub struct PlainDriver {
    options: OverlayOptions,
}

impl PlainDriver {
    /// Mounts with these options.
    #[must_use]
    pub fn new(options: OverlayOptions) -> Self {
        Self { options }
    }
}

fn measure(directory: &Path) -> Result<Usage> {
    let contents = directory.join(overlay::CONTENTS);
    tree::usage(&contents).map_err(Error::io("measure", contents))
}

impl Driver for PlainDriver {
    fn create(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Note> {
        make_contents(new, directory)?;
        Ok(Note::default())
    }

    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>> {
        if self.options.volatile {
            overlay::allow_remount(&chain.directory)?;
        }
        overlay::mounts(chain, &self.options)
    }

    fn update(&self, _: &Snapshot, _: &Path, labels: &Labels) -> Result<()> {
        IdMap::from_labels(labels).map(drop)
    }

    fn usage(&self, snapshot: &Snapshot, directory: &Path) -> Result<Usage> {
        match snapshot.info.kind {
            Kind::View => Ok(Usage::default()),
            Kind::Active | Kind::Committed => measure(directory),
        }
    }

    fn commit(&self, _: &Snapshot, directory: &Path) -> Result<Committed> {
        Ok(Committed {
            usage: Some(measure(directory)?),
            note: Note::default(),
        })
    }

    fn release(&self, _: &Remains) -> Result<()> {
        Ok(())
    }

    fn forget(&self, _: &Remains) -> Result<()> {
        Ok(())
    }

    fn recover(&self, _: &[(Snapshot, PathBuf)]) -> Result<()> {
        Ok(())
    }
}
