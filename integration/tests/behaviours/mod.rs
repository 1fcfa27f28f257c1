//! What a user of `ctr` relies on. Included by one test program for each runtime.

mod events;
mod exits;
mod ids;
mod layers;
mod limits;
mod logs;
mod options;
mod restarts;
mod signals;
mod tasks;
mod terminals;
