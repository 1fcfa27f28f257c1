//! The store with images that are made here: what goes in comes out, what lies is refused, what is killed
//! leaves nothing half.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod added;
mod command;
mod converted;
mod damaged;
mod exported;
mod images;
mod pulled;
mod refused;
mod registry_server;
mod served;
mod server;
mod tls;
mod waste;
