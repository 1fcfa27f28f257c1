//! Drives stock containerd with our binaries.
//!
//! From the ground up: programs and waiting ([`process`], [`wait`], [`terminal`]); what tests run
//! with ([`versions`], [`runtime`], [`images`], [`listing`]); one containerd and its client ([`containerd`],
//! [`ctr`], [`events`]); a snapshotter behind it ([`snapshotter`], [`proxy`], [`conformance`]), with a store of disks ([`store`]); a registry to pull from ([`registry`]); the host's lxcfs ([`lxcfs`]); an image's own init ([`image_init`]); who is killed at a step ([`hold`], [`settle`]); what must be left afterwards, nothing ([`census`], [`sweep`]); and
//! [`check`], with which the tests are written.

pub mod apt;
pub mod cache;
pub mod census;
pub mod certificates;
pub mod cgroup;
pub mod check;
pub mod config;
pub mod conformance;
pub mod containerd;
pub mod cri;
pub mod ctr;
mod daemon;
pub mod disk;
pub mod docker_registry;
pub mod event_stream;
pub mod events;
pub mod figures;
pub mod golang;
pub mod grpc;
pub mod guest;
pub mod hold;
pub mod image_init;
pub mod images;
pub mod listing;
pub mod lxcfs;
pub mod nerdctl;
pub mod network;
pub mod node;
pub mod original_suite;
pub mod podman;
pub mod process;
pub mod profile;
pub mod proxy;
pub mod random;
pub mod registry;
pub mod runtime;
pub mod s3;
pub mod settle;
pub mod skip;
pub mod snapshotter;
pub mod store;
pub mod sweep;
pub mod tag;
mod template;
pub mod terminal;
pub mod versions;
pub mod wait;
