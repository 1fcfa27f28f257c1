//! Where a process reads and writes: fifos, files, log binaries, ttys, and the one copy loop.
//!
//! ```text
//!   client ──fifo──> stdin ──pipe──> process ──pipe──> stdout ──> fifo  ──> client
//!                                            ──pipe──> stderr ──> file
//!                                            ──pipe────────────────────────> log binary
//!                    stdin ──┐
//!                            ├─ master <=> slave: process
//!                   stdout ──┘
//! ```
//!
//! [`Streams::open`] opens everything before the process exists and gives its ends;
//! [`Streams::copy`] starts copying; a [`Copier`] is told when stdin ends, when the process has
//! ended, and when it is deleted. Copying never blocks the thread it runs on, and what one stream's
//! reader does not take holds up nothing but that stream.
//!
//! Where this differs from containerd's own shim, on purpose:
//! * Output and errors each go to the place named for them; there, a file or a log binary named for
//!   output takes both.
//! * A process starts whether or not a client has opened its fifos; there, it waits for one. A
//!   client that opens later, even after the end, finds all a fifo holds, and its end.
//! * After the end of a process, one that inherited its streams does not hold up [`Copier::drain`];
//!   there, deleting waits 10 s for it.
//! * Closing the input of a terminal types its end-of-file character; there, it hangs up.
//! * A full disk or a log binary that dies loses output; there, the process stops sooner or later.

mod caller;
mod copier;
mod error;
mod input;
mod linger;
mod logger;
mod mover;
mod output;
mod place;
mod port;
mod streams;
mod uri;

pub use caller::{Flow, RawTerminal, Signals, is_readable};
pub use copier::{Copier, Drained};
pub use error::Error;
pub use streams::{Ends, Identity, Mode, Owner, Request, Streams};
pub use sys::pty::WindowSize;
pub use uri::{Readiness, Uri};
