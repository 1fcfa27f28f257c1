//! What operators ask the daemon: the service `pouch.quota.v1`. containerd never calls it.

mod acquaintance;
mod changes;
mod convert;
mod doctor;
mod find;
mod lifts;
mod service;

pub(crate) use convert::sentences;
pub(crate) use service::{Admin, Parts};
