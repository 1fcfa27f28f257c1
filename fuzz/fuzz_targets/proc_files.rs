//! /proc/PID/mountinfo and /proc/PID/cgroup, in which containers choose names.

#![no_main]

use cgroups::{CgroupPaths, Hierarchies};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|texts: (&str, &str, &str)| {
    let (mountinfo, cgroup, path) = texts;
    let _entries = mounts::mountinfo::parse(mountinfo);
    let Ok(host) = Hierarchies::detect(mountinfo, cgroup) else {
        return;
    };
    let Ok(paths) = CgroupPaths::new(&host, path) else {
        return;
    };
    for dir in &paths.dirs {
        let is_below = dir.path.components().all(|part| part.as_os_str() != "..");
        assert!(is_below, "{}", dir.path.display());
    }
});
