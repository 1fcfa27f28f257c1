//! CRIU: processes into files and back. It is a program of the host (`apt-get install criu`) that
//! is asked over a socket, `criu swrk`; what a container is, it is told by `checkpoint.rs` and
//! `restore.rs`.

mod log;
mod service;
pub(crate) mod wire;

pub(crate) use service::{Criu, Note, Task};
