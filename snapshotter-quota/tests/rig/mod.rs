//! What the tests of all back ends share: a disk of their own, snapshots on it, and the checks that
//! every back end must pass.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own functions")]

pub(crate) mod checks;
pub(crate) mod disk;
pub(crate) mod killed;
pub(crate) mod overlay;
pub(crate) mod store;
