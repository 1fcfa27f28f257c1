//! The server's side of the NBD protocol, as far as disks that nobody writes need it: pure, from bytes to bytes. It
//! reads no socket, opens nothing and knows no disk.
//!
//! ```text
//!           flags          STARTTLS (where it is needed)           GO, EXPORT_NAME
//!  GREETING -----> options ----------------------------> options -----------------> requests --DISC--> end
//!                    | LIST, INFO, STRUCTURED_REPLY: answered     READ: answered | others: refused
//! ```
//!
//! Newstyle, fixed (NetworkBlockDevice/nbd, doc/proto.md, whose names the constants have). What a client sends is
//! taken in runs whose lengths are known before they come, and none is longer than [`WANTED_BYTES_MAX`].

mod fields;
mod read;
mod session;
mod values;

pub use read::Read;
pub use session::{Event, Found, GREETING, Security, Session, WANTED_BYTES_MAX};
pub use values::{Failure, READ_BYTES_MAX};
