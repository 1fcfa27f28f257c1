//! Machines that were booted once, without a container, and stopped: others go on from there instead of
//! booting.
//!
//! ```text
//!   shim ── create ──> take ── socket ──> holder: memory, sealed, and the state of the devices
//!     │                  └─ none there: the machine boots
//!     └── afterwards ──> start: a process of its own for each key, which becomes the
//!                        holder: boots a machine, stops and saves it, gives it to who asks, and
//!                        ends when it is unused, old or told to; what it held is gone with it
//! ```
//! A template has no secret, for it was made before there was any; each copy gets its clock, random
//! numbers and hardware addresses before anything runs in it.

mod call;
mod holder;
mod key;
mod make;
mod place;
mod start;

pub(crate) use call::take;
pub use call::{HeldReport, Listed, Report, Template, end, list};
pub use holder::main_of;
pub(crate) use key::Key;
pub(crate) use make::EPOCH;
pub use place::Places;
pub use start::{Kind, make};
pub(crate) use start::{machine, make_later};
