//! containerd's shim protocol and Task API for any runtime that implements one trait.
//!
//! A shim's `main` is one call of [`run`] with a [`Runtime`]. Nothing here knows how a container is
//! made, and no type of the wire leaves `convert`.
//!
//! ```text
//!   containerd ── start ──> run ──> start.rs: bind, spawn ──> serve.rs
//!              ── ttrpc ──> service.rs, sandbox.rs ──> shim.rs ──> actor.rs ──> jobs.rs ──> Runtime
//!              <── events ──────────────── events.rs <────┘
//!              ── delete ─> run ──> delete.rs ────────────────────────────────> Runtime
//! ```

mod error;

pub mod pod;
pub mod runtime;

mod actor;
mod blocking;
mod client;
mod command;
mod convert;
mod delete;
mod events;
mod exits;
mod flags;
mod forgotten;
mod handover;
mod jobs;
mod logging;
mod oom;
mod process_io;
mod processes;
mod request;
mod rootfs;
mod run;
mod sandbox;
mod serve;
mod service;
mod shim;
mod socket;
mod start;
mod status;
mod time;
mod waiters;

pub use client::{Client, Program, State};
pub use error::{Code, ShimError, chain};
pub use logging::{level_word, to_stderr as log_to_stderr};
pub use pod::{NamespaceMode, Pod, SandboxRequest};
pub use run::run;
pub use runtime::{
    CheckpointRequest, Container, CreateRequest, Created, DeleteRequest, ExecRequest, Features,
    Identity, Options, ProcessIo, Runtime, SignalTarget, Started, Stats, UpdateRequest, WindowSize,
};
pub use time::rfc3339;
