//! What a command or the daemon failed with.

use std::{io, path::PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one error per crate, named by its path"
)]
#[non_exhaustive]
pub enum Error {
    /// What the core or a back end failed with.
    #[error(transparent)]
    Core(#[from] snapshot_core::Error),
    /// What was asked for makes no sense.
    #[error(transparent)]
    Refused(#[from] crate::limit::Refusal),
    /// A value of the configuration.
    #[error("{key}: {why}")]
    Setting {
        /// Its name.
        key: &'static str,
        /// What is wrong with it, and what is taken.
        why: String,
    },
    /// Nobody answers at a socket.
    #[error("failed to connect to {who} at {}; {advice}", address.display())]
    Unreachable {
        /// Whose socket it is.
        who: &'static str,
        /// Its path.
        address: PathBuf,
        /// What to do.
        advice: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The other side answered that it did not do it, and why.
    #[error("{0}")]
    Answered(String),
    /// Nobody has that name.
    #[error("no snapshot has the key or the name {0:?}; `snapshotter-quota ls --all` lists them")]
    NoSuch(String),
    /// A command's words go nowhere.
    #[error("failed to write to the standard output")]
    Output(#[source] io::Error),
}

impl Error {
    /// Its text and those of all that caused it, joined by colons.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        snapshot_core::one_line(self)
    }
}
