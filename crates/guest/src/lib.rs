//! What a shim and the agent in its virtual machine say to each other, on the first stream of the mux.
//!
//! ```text
//!   shim                                                agent
//!     | Request { number, call }                          |
//!     |-------------------------------------------------->|  each on a thread of its own
//!     |<--------------------------------------------------|  Reply { number, outcome }
//!     |<--------------------------------------------------|  Exited, OutOfMemory: by itself
//! ```
//! The guest is hostile as far as the shim is concerned: messages are bounded, have types, and name no
//! path of the host. The words are the runtime specification's and containerd's.

pub mod call;
pub mod wire;

use network::Mac;

/// Version of these messages; the agent says its own in the answer to [`call::Call::Prepare`].
pub const VERSION: u32 = 7;

/// Name of the virtio-serial port.
pub const PORT: &str = "pouch.runv.agent";

/// What the agent is told that waits as the program of a sandbox.
pub const PAUSE: &str = "pause";

/// Hardware address that the link at that position has until [`call::Call::Connect`] tells its own: in
/// all machines the same one, of those that nobody is given.
#[must_use]
pub fn first_mac(position: usize) -> Mac {
    let last = u8::try_from(position).unwrap_or(u8::MAX);
    Mac([2, b'r', b'u', b'n', b'v', last])
}
