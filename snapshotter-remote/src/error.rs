//! What can go wrong with disks that are kept; must not log.

use std::{io, net::SocketAddr, path::PathBuf};

use disk::Digest;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A disk that cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by its path"
)]
pub enum Error {
    /// Bytes that are not what their name, a digest or a signature says: they must not be used.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// What the bytes were taken for.
        object: String,
        /// What is wrong with them.
        what: &'static str,
    },
    /// A store with disks whose key is gone.
    #[error(
        "{} is not there, but disks that were signed with it are: put it back, or begin a new store in \
         another directory",
        path.display()
    )]
    KeyLost {
        /// Where it should be.
        path: PathBuf,
    },
    /// Bytes of another version of this program.
    #[error("{object} is of version {found}, and this program reads version {known}")]
    OtherVersion {
        /// What they are.
        object: String,
        /// Their version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A manifest that nobody whom the reader trusts has signed.
    #[error("{object} is signed with key {key}, which is not trusted here")]
    Untrusted {
        /// The manifest.
        object: String,
        /// The public key that it names.
        key: String,
    },
    /// More of something than there may be.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// What is to be cut into chunks could not be read.
    #[error("reading what is to be cut into chunks")]
    Read(#[source] io::Error),
    /// What was put together from chunks could not be written.
    #[error("writing the contents of chunks")]
    Write(#[source] io::Error),
    /// Compression failed, for want of memory.
    #[error("compressing a chunk")]
    Compress(#[source] io::Error),
    /// The store does not have it.
    #[error("the store has no {object}")]
    Absent {
        /// Its name.
        object: String,
    },
    /// An object could not be reached.
    #[error("{doing} {object}")]
    Objects {
        /// What was tried.
        doing: &'static str,
        /// The object.
        object: String,
        /// The answer.
        #[source]
        source: Box<object_store::Error>,
    },
    /// A bucket did not do what it was asked for.
    #[error("{doing} {object} in {bucket}: {what}")]
    Bucket {
        /// What was tried.
        doing: &'static str,
        /// The object.
        object: String,
        /// The bucket, with the store's prefix.
        bucket: String,
        /// What it said, and what to do.
        what: String,
    },
    /// A file could not be used.
    #[error("{doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// A directory or bucket that is no store.
    #[error("{store} has no key, so it is no store: `store add` makes one")]
    NoStore {
        /// The directory, or the bucket and its prefix.
        store: String,
    },
    /// A key file that has no key.
    #[error("{}: {what}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// What is no image, or not the one that it says.
    #[error("{image}: {what}")]
    Image {
        /// The image.
        image: String,
        /// What is wrong with it.
        what: String,
    },
    /// A registry did not give what an image is made of.
    #[error("registry {registry} did not give {object}: {what}")]
    Registry {
        /// Its host, perhaps with a port.
        registry: String,
        /// What it was asked for.
        object: String,
        /// What it said, or what happened.
        what: String,
    },
    /// A layer that cannot be part of a disk.
    #[error("layer sha256:{diff_id}")]
    Layer {
        /// Its name.
        diff_id: Digest,
        /// Why not.
        #[source]
        source: disk::Error,
    },
    /// Others change the store.
    #[error("{store} is being added to or cleaned up by another process{way_out}: try again later")]
    Busy {
        /// The store.
        store: String,
        /// Who that is and how it ends, where that is known.
        way_out: String,
    },
    /// A process has lost the right to change a bucket, so others may have changed it.
    #[error(
        "this process may not change {store} any more, because {why}: nothing more is done, see `store verify` and try again"
    )]
    Lapsed {
        /// The store.
        store: String,
        /// How it was lost.
        why: String,
    },
    /// What cannot be read may need anything, so nothing is removed.
    #[error(
        "nothing is removed, because what {object} needs is not known (`store verify` says more{way_out})"
    )]
    Unsure {
        /// The object that cannot be read.
        object: String,
        /// How to go on without it.
        way_out: String,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// Another disk's layers begin with all of this one's.
    #[error("disk sha256:{chain_id} stays: disk sha256:{above} stands on it and has to go first")]
    StoodOn {
        /// The one that stays.
        chain_id: Digest,
        /// The other.
        above: Digest,
    },
    /// A store that a newer or older version of this program has filled, too.
    #[error(
        "{object} is there: only the version of this program that made it knows what it needs, so \
         nothing is removed"
    )]
    OtherFormat {
        /// The directory of its disks.
        object: String,
    },
    /// A setting that nobody could serve with: says which, and what to do.
    #[error("{0}")]
    Setting(String),
    /// What daemons have in common could not be done.
    #[error(transparent)]
    Daemon(#[from] snapshot_core::Error),
    /// An address that cannot be served.
    #[error("listening on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// No store gave an object, nor said that it has none.
    #[error("{store} did not give {object}: {what}")]
    Unreachable {
        /// The object.
        object: String,
        /// The store that was asked last.
        store: String,
        /// What it said.
        what: String,
    },
    /// Standard output does not take what it is given.
    #[error("writing to standard output")]
    Output(#[source] io::Error),
    /// Layers that cannot be a disk together.
    #[error("disk of chain sha256:{chain_id}")]
    Disk {
        /// Its name.
        chain_id: Digest,
        /// Why not.
        #[source]
        source: disk::Error,
    },
}

impl Error {
    pub(crate) fn damaged(object: impl Into<String>, what: &'static str) -> Self {
        Self::Damaged {
            object: object.into(),
            what,
        }
    }
}
