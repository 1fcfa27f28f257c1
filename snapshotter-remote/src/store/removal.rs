//! Disks out of a store, by name. What only they needed becomes waste, which `waste` takes away.

use std::time::Duration;

use disk::Digest;

use super::{Store, lock, name::Name, waste::unsure};
use crate::{
    error::{Error, Result},
    manifest::chain_ids,
};

/// What goes with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// Disks that it stands on stay: they may be images of their own.
    Keep,
    /// Disks that it stands on go, too, as far as no other disk stands on them.
    Remove,
}

impl Store {
    /// Removes a disk; the names of all that went come back, the one asked for first.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::StoodOn`] when another disk stands on it, [`Error::Unsure`] when a
    /// manifest cannot be read, [`Error::Busy`], and what the store answers.
    pub fn remove(&self, chain_id: Digest, below: Below, wait: Duration) -> Result<Vec<Digest>> {
        let alone = lock::removing(&self.objects, wait)?;
        let name = Name::Disk(chain_id);
        if !self.objects.has(name)? {
            let object = name.to_string();
            return Err(Error::Absent { object });
        }
        // One that is good for nobody here may go, whoever else is not: of several, one has to be first.
        let (ours, is_lost) = match self.manifest(chain_id) {
            Ok(manifest) => (chain_ids(&manifest.diff_ids()), false),
            Err(error) if below == Below::Keep && is_useless(&error) => (Vec::new(), true),
            Err(error) => return Err(unsure(name, error)),
        };
        let mut others = Vec::new();
        for disk in self.objects.disks()? {
            if disk == chain_id {
                continue;
            }
            match self.manifest(disk) {
                Ok(manifest) => others.push(chain_ids(&manifest.diff_ids())),
                Err(error) if is_lost && is_useless(&error) => {}
                Err(error) => return Err(unsure(Name::Disk(disk), error)),
            }
        }
        if let Some(above) = others.iter().find(|chain| chain.contains(&chain_id)) {
            let above = *above.last().expect("a disk has a layer");
            return Err(Error::StoodOn { chain_id, above });
        }
        let mut gone = vec![chain_id];
        if below == Below::Remove {
            // The nearest first: all that is below one that stays is stood on, too.
            for &prefix in ours.iter().rev().skip(1) {
                let stands_on_it = |chain: &&Vec<Digest>| {
                    let disk = chain.last().expect("a disk has a layer");
                    *disk != prefix && !gone.contains(disk) && chain.contains(&prefix)
                };
                if others.iter().any(|chain| stands_on_it(&chain)) {
                    break;
                }
                if self.objects.has(Name::Disk(prefix))? {
                    gone.push(prefix);
                }
            }
        }
        for &disk in &gone {
            let _step = alone.confirm()?;
            self.objects.remove(Name::Disk(disk))?;
            self.objects.traces().remove(disk)?;
        }
        self.objects.sync_directory_of(name)?;
        Ok(gone)
    }
}

/// Whether nobody who trusts this store's key can use such a manifest.
fn is_useless(error: &Error) -> bool {
    matches!(
        error,
        Error::Damaged { .. } | Error::Untrusted { .. } | Error::OtherVersion { .. }
    )
}
