//! The store: where disks are kept for all hosts. Objects are written once and whole, what they lead to
//! before them; docs/remote.md has the layout and the reasons.
//!
//! ```text
//!  many who add, or one who removes (lock)
//!  add:  tar -> diffID proved -> chunks -> table -> stored layer     once for each layer
//!        stored layers -> tree -> metadata -> chunks -> manifest     once for each chain id
//! ```

mod add;
mod chunks;
mod export;
mod flat;
mod key;
mod layer;
mod listing;
mod lock;
mod objects;
mod reading;
mod removal;
mod traces;
mod verify;
mod waste;

use std::path::Path;

pub use add::Added;
pub use flat::{FlatDisk, Part};
pub use listing::Listed;
pub use objects::{Name, Objects};
pub use reading::{Opened, Reader};
pub use removal::Below;
pub use traces::Traces;
pub use verify::{Damage, Verified};
pub use waste::{Sweep, Waste};

use crate::{error::Result, signature::PrivateKey};

/// A store that this process may write.
#[derive(Debug)]
pub struct Store {
    objects: Objects,
    key: PrivateKey,
}

impl Store {
    /// The store in a directory, made if there is none, with a new key.
    ///
    /// # Errors
    /// What the file system answers, a key file that has no key, and a store that has lost its key.
    pub fn create(directory: &Path) -> Result<Self> {
        let objects = Objects::create(directory)?;
        let is_empty = objects.disks()?.is_empty();
        Ok(Self {
            key: key::load_or_make(directory, is_empty)?,
            objects,
        })
    }

    /// The store that is in a directory.
    ///
    /// # Errors
    /// As [`Store::create`], and when there is none.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            key: key::load(directory)?,
            objects: Objects::create(directory)?,
        })
    }

    /// Where everything lies.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }
}
