//! The store: where disks are kept for all hosts. Objects are written once and whole, what they lead to
//! before them; docs/remote.md has the layout and the reasons.
//!
//! ```text
//!  many who add, or one who removes (lock)
//!  add:  tar -> diffID proved -> chunks -> table -> stored layer     once for each layer
//!        stored layers -> tree -> metadata -> chunks -> manifest     once for each chain id
//! ```

mod add;
mod bucket;
mod chunks;
mod directory;
mod export;
mod files;
mod flat;
mod key;
mod layer;
mod lease;
mod listing;
mod lock;
mod name;
mod objects;
mod place;
mod reading;
mod removal;
mod s3_credentials;
mod streamed;
mod traces;
mod verify;
mod waste;

pub use add::Added;
pub use bucket::S3Config;
pub use flat::{FlatDisk, Part};
pub use lease::{WordName, take_words_back};
pub use listing::Listed;
pub use name::Name;
pub use objects::Objects;
pub use place::{BucketName, Place};
pub use reading::{Opened, Reader};
pub use removal::Below;
pub use traces::Traces;
pub use verify::{Damage, Verified};
pub use waste::{Sweep, Waste};

use objects::Ground;

use crate::{
    error::Result,
    signature::{PrivateKey, PublicKey},
};

/// A store that this process may write.
#[derive(Debug)]
pub struct Store {
    objects: Objects,
    /// What is believed.
    public: PublicKey,
    /// What signs; who only looks after a bucket does without.
    private: Option<PrivateKey>,
}

impl Store {
    /// The store there, made with a new key if there is none; a bucket has to be there.
    ///
    /// # Errors
    /// What the file system or the bucket answers, a key file that has no key, and a store that has lost its key.
    pub fn create(place: impl Into<Place>) -> Result<Self> {
        let objects = Objects::at(&place.into())?;
        let private = match objects.ground() {
            Ground::Directory(directory) => {
                let is_empty = objects.disks()?.is_empty();
                key::load_or_make(directory.path(), is_empty)?
            }
            Ground::Bucket(bucket) => {
                key::load_or_make_for_bucket(&objects, bucket.key_file.as_deref())?
            }
        };
        Ok(Self {
            objects,
            public: private.public(),
            private: Some(private),
        })
    }

    /// The store that is there.
    ///
    /// # Errors
    /// As [`Store::create`], and when there is none.
    pub fn open(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        if let Place::Directory(path) = &place {
            // Nothing is made where there is no store.
            let private = key::load(path)?;
            return Ok(Self {
                objects: Objects::at(&place)?,
                public: private.public(),
                private: Some(private),
            });
        }
        let objects = Objects::at(&place)?;
        let public = key::public_in_bucket(&objects)?;
        let private = match objects.ground() {
            Ground::Bucket(bucket) => key::private_of_bucket(bucket.key_file.as_deref(), &public)?,
            Ground::Directory(_) => None,
        };
        Ok(Self {
            objects,
            public,
            private,
        })
    }

    /// Where everything lies.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }
}
