//! Drives the stub as the host side does, in real namespaces, as root, on root file systems of one
//! busybox. Everything made is in temporary directories and in namespaces that end with the test.
#![cfg(test)]

mod host;
mod image;

mod agent;
mod capabilities;
mod command_line;
mod devices;
mod exec;
mod files;
mod hooks;
mod lifecycle;
mod masks;
mod process;
mod reaper;
mod terminal;
