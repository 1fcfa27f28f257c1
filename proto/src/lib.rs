//! containerd's gRPC services that our snapshotters serve and call, and our own for operators, as
//! generated code.
//!
//! The `.proto` files are in `protos/`, the code made from them in `src/generated/`, both
//! committed: building needs no protoc. `tests/generated.rs` fails when the two differ. Nothing
//! here is written by hand, and nothing but a crate's `convert.rs` should see these types.

#![expect(
    missing_docs,
    unused_qualifications,
    clippy::too_many_lines,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

/// `containerd.types`: what several services carry.
#[rustfmt::skip]
#[path = "generated/containerd.types.rs"]
pub mod types;

/// `containerd.services.snapshots.v1`: what a proxy snapshotter answers.
#[rustfmt::skip]
#[path = "generated/containerd.services.snapshots.v1.rs"]
pub mod snapshots;

/// `containerd.services.content.v1`: where documents and layers of images are.
#[rustfmt::skip]
#[path = "generated/containerd.services.content.v1.rs"]
pub mod content;

/// `containerd.services.images.v1`: which name stands for which image.
#[rustfmt::skip]
#[path = "generated/containerd.services.images.v1.rs"]
pub mod images;

/// `containerd.services.leases.v1`: what is not collected before somebody has ended.
#[rustfmt::skip]
#[path = "generated/containerd.services.leases.v1.rs"]
pub mod leases;

/// `containerd.services.diff.v1`: how layers are unpacked.
#[rustfmt::skip]
#[path = "generated/containerd.services.diff.v1.rs"]
pub mod diff;

/// `containerd.services.events.v1`: what a plug-in tells containerd's listeners.
#[rustfmt::skip]
#[path = "generated/containerd.services.events.v1.rs"]
pub mod events;

/// `containerd.services.introspection.v1`: what a plug-in learns of its own registration.
#[rustfmt::skip]
#[path = "generated/containerd.services.introspection.v1.rs"]
pub mod introspection;

/// `pouch.quota.v1`: what the command snapshotter-quota asks of its daemon.
#[rustfmt::skip]
#[path = "generated/pouch.quota.v1.rs"]
pub mod quota;

/// `pouch.remote.v1`: what the command snapshotter-remote asks of its daemon.
#[rustfmt::skip]
#[path = "generated/pouch.remote.v1.rs"]
pub mod remote;

/// Encodes messages that another one carries as an `Any`.
pub use prost::Message;
