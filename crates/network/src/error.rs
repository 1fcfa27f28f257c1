//! What can go wrong with a network, with the operands in it.

use std::io;

use netlink_packet_core::DecodeError;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "callers say network::Error, as with every crate here"
)]
pub enum Error {
    /// A system call, or the kernel's answer to a message.
    #[error("{what}")]
    Io {
        /// What was tried, with its operands.
        what: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The kernel said what the crate of its messages does not understand.
    #[error("{what}: understand the kernel's answer")]
    Answer {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// Something in the namespace that a machine cannot have.
    #[error("{what} in the network namespace is not supported: {why}")]
    Unsupported {
        /// What.
        what: String,
        /// What is in the way.
        why: &'static str,
    },
    /// The namespace's traffic goes elsewhere already.
    #[error(
        "link {0} in the network namespace has an ingress queueing discipline already: another machine, or other traffic control, uses it"
    )]
    Taken(String),
    /// Somebody else decides already how fast a link sends.
    #[error("link {0} in the network namespace has a queueing discipline already that is not ours")]
    Shaped(String),
    /// There is nothing to be limited.
    #[error("the network namespace has no link that is up, beside its loopback")]
    NoLinks,
    /// There is no link with that hardware address.
    #[error("no link has the hardware address {0}, which is to be {1}")]
    NoLink(crate::Mac, String),
    /// There is no link with that name to be moved.
    #[error("there is no link {0} in the network namespace that it is to be moved from")]
    NoSuchLink(String),
    /// It belongs to its network namespace.
    #[error("link {0} is the loopback, which the kernel moves nowhere")]
    Loopback(String),
    /// A link that is moved cannot have that name.
    #[error("there is a link {0} already in the network namespace that one is to be moved to")]
    NameInUse(String),
}

impl Error {
    /// Names a failed step, for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// The kernel's number, if it is the kernel who refused.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
