//! containerd's filters of snapshots.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot_core::Filter;

fuzz_target!(|texts: Vec<&str>| {
    let _refused_or_not = Filter::parse(&texts);
});
