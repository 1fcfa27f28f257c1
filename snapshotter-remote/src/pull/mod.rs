//! Images into containerd without their layers, for clients that do not ask a snapshotter before they fetch: `ctr` of 1.6, and
//! that of 1.7 as it is called every day. It does what `ctr images pull --snapshotter remote` of 2.x does, by containerd's own services.
//!
//! ```text
//!  registry --index, manifest, config--> content    under a lease, so that nothing is collected before the end
//!  for each layer from the bottom:
//!     snapshots Prepare, label snapshot.ref --ALREADY_EXISTS--> the snapshotter has it as a disk
//!                                           --mounts-> layer: registry -> content -> diff Apply -> Commit
//!  images Create                                    then the lease goes
//! ```

mod containerd;
mod layers;
mod registry;
mod run;

pub use run::{Place, Pull, Pulled, chain_of_image, pull};
