//! No limits: plain directories. What the other back ends make of a snapshot without a limit that
//! they have no cheap account for, and all there is with the back end `none`.

use std::path::Path;

use snapshot_core::{Error, Result, SnapshotId, Usage};

use super::{
    Abilities, Backend, Closed, Counting, Full, Held, Kept, Kind, Left, Record, Report, Resize,
    Support, directories,
    disk_usage::{self, Walks},
    mounted, separate,
};
use crate::limit::{Limit, Mode};

/// Plain directories.
#[derive(Debug, Default)]
pub struct Plain {
    walks: Walks,
}

impl Backend for Plain {
    fn kind(&self) -> Kind {
        Kind::None
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            resize: Resize::Fixed,
            inodes: Support::No,
            soft: Support::No,
            groups: Support::No,
            full: Full::Never,
            df: Support::No,
            counting: Counting::Walk,
        }
    }

    fn create(&self, directory: &Path, _: SnapshotId, limit: &Limit) -> Result<Record> {
        if limit.mode == Mode::Hard {
            return Err(Error::Invalid(
                "the limit cannot hold: the back end is none; choose another, see \
                 snapshotter-quota probe"
                    .to_owned(),
            ));
        }
        directories::make(directory)?;
        Ok(Record::Plain)
    }

    fn set_limit(&self, held: &Held<'_>, limit: &Limit) -> Result<()> {
        if limit.mode == Mode::Hard {
            return Err(Error::Invalid(format!(
                "snapshot {held} was made without a limit and cannot be given one: its \
                 directories are counted by nothing; make a new container with the limit"
            )));
        }
        Ok(())
    }

    fn usage(&self, held: &Held<'_>) -> Result<Usage> {
        self.walks
            .usage(held.id, &held.record.upper(held.directory))
    }

    fn commit(&self, held: &Held<'_>) -> Result<Closed> {
        self.walks.forget(held.id);
        Ok(Closed {
            usage: Some(disk_usage::of(&held.record.upper(held.directory))?),
            record: Record::Plain,
        })
    }

    fn release(&self, left: &Left<'_>) -> Result<()> {
        // As below.
        if mounted::place(left.directory).exists() {
            mounted::unmount(left.directory)?;
        }
        Ok(())
    }

    fn forget(&self, left: &Left<'_>) -> Result<()> {
        self.walks.forget(left.id);
        Ok(())
    }

    /// A layer is copied out of a file system of its own, which goes when the commit is stored: not
    /// if the daemon ended before.
    fn recover(&self, kept: &[Kept<'_>]) -> Result<Report> {
        let layers = kept.iter().filter(|kept| kept.limit.is_none());
        for Kept { held, .. } in layers {
            let is_left = separate::is_left(held.directory);
            if is_left && held.record.upper(held.directory).exists() {
                separate::log(held, separate::clear(held.directory));
            }
        }
        Ok(Report::default())
    }
}
