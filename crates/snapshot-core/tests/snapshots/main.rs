//! Snapshots as containerd asks for them, over real directories and a real store.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "functions shared by tests, which clippy cannot tell from others"
)]

mod crash;
mod disk;
mod driver;
mod full;
mod grpc;
mod model;
mod operations;
mod ready_made;
mod recovery;
mod root;
mod threads;
