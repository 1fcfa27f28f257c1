//! An OCI seccomp profile compiled to a BPF program.
//!
//! Pure: loading the program into a thread is the business of `sys`.

mod error;

mod arch;
mod assemble;
mod cases;
mod compile;
mod names;
mod profile;
mod verdict;

pub use arch::Arch;
pub use compile::{Program, compile};
pub use error::Error;
pub use names::number;
pub use profile::{Action, Arg, Flag, Instruction, NEW_LISTENER, Operator, Profile, Rule};
