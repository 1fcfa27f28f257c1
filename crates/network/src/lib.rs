//! The network of a container as values: read from its namespace by rtnetlink(7), tied to the machine it
//! runs in, written again inside of that; and how fast its links may be. Must not know who asks, nor keep
//! anything on disk.
//!
//! ```text
//!   host, in the container's network namespace                     guest
//!     link ──ingress──> mirred ──> tap ──descriptor──> QEMU ──> virtio-net   same MAC address, MTU,
//!     link <── mirred <──ingress── tap                                       addresses, routes: `apply`
//! ```

mod error;
mod rtnetlink;
mod values;

mod apply;
mod hand_over;
mod limit;
mod namespace;
mod read;
mod tie;
mod token_bucket;

#[cfg(test)]
mod tests;

pub use apply::{apply, readdress};
pub use error::{Error, Result};
pub use hand_over::hand_over;
pub use limit::{Limit, Limits, lift, limit};
pub use namespace::{HeldNamespace, Identity, Namespace};
pub use read::{Found, read};
pub use tie::{Tied, tie, untie};
pub use values::{Address, Link, Mac, Neighbour, Network, Route};
