//! Many byte streams over one, which is a virtio-serial port: the host opens streams, both ends write,
//! read and end them, each direction for itself. No threads but in `link`; no file is opened here.
//!
//! ```text
//!   frame:  epoch u16 | kind u8 | 0 u8 | stream u32 | length u32 | payload      little-endian
//!
//!   host                                        guest
//!     | Hello(epoch, magic, version)              |  forgets every stream, takes the epoch
//!     |------------------------------------------>|
//!     |<------------------------------------------|  Hello, the same epoch
//!     | Open(stream)  Data ...                    |
//!     |------------------------------------------>|
//!     |<----------------------------------- Credit|  so much of it was read
//!     | Fin: "I write no more"                    |
//!     |------------------------------------------>|
//!     |<-------------------- Reset: "I read no more"
//! ```
//! Who lost the other begins anew with a Hello: the guest looks for one byte by byte, and a host takes
//! nothing for its own that comes before its own epoch. What the guest says is bounded, and what breaks
//! a rule ends the link at the host.

mod endpoint;
mod frame;
mod link;

pub use endpoint::{Endpoint, Got};
pub use frame::{CREDIT_BYTES, DATA_BYTES_MAX, Violation};
pub use link::{Link, Stream, Until};
