//! How disks are cut, named and signed: behaviour at the crate's door, without a store.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod cut;
mod manifest;
mod signature;
