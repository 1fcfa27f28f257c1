//! What can go wrong with a disk; must not log.

use std::io;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A layer that cannot become part of a disk, or input and output that failed.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by its path"
)]
pub enum Error {
    /// The source of the tar failed, which says nothing of the layer.
    #[error("reading the tar of the layer at byte {offset}")]
    Read {
        /// Bytes that were read before.
        offset: u64,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The blob or the image could not be written.
    #[error("writing the disk")]
    Write(#[source] io::Error),
    /// The blob of a layer could not be read.
    #[error("reading the blob of layer {diff_id}")]
    ReadBlob {
        /// The layer.
        diff_id: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// This is no tar, or a damaged one.
    #[error("tar header at byte {offset}: {what}")]
    Malformed {
        /// Where the header begins, in bytes of the uncompressed layer.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A tar whose entry the image-spec, tar or Linux forbids: no tool should accept it.
    #[error("{path}: {why}")]
    Refused {
        /// The entry's path; bytes that are not printable are escaped.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A legal entry that this kind of disk cannot show: the image must be unpacked instead.
    #[error("{path}: {why}")]
    Unsupported {
        /// The entry's path; bytes that are not printable are escaped.
        path: String,
        /// What cannot be shown.
        why: &'static str,
    },
    /// More of something than [`crate::Limits`] allow.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Bytes that are no stored layer, or a damaged one: the layer must be read from its tar again.
    #[error("stored layer at byte {offset}: {what}")]
    Damaged {
        /// Where, in bytes.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// A layer that another version of this crate stored: it must be read from its tar again.
    #[error("a stored layer of version {found}, not {}", crate::stored::VERSION)]
    OtherVersion {
        /// Its version.
        found: u32,
    },
}
