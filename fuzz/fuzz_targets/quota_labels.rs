//! What labels, rules and commands say of limits.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use snapshotter_quota::limit::{
    Asked, DISK_QUOTA, GROUP, INODES, MAX_SIZE, MODE, SOFT_SIZE, Size, WARN,
};

const NAMES: [&str; 7] = [MAX_SIZE, INODES, SOFT_SIZE, MODE, GROUP, WARN, DISK_QUOTA];

fuzz_target!(|input: (Vec<(u8, &str)>, BTreeMap<String, String>, &str)| {
    let (values, mut labels, size) = input;
    for (name, value) in values {
        let name = NAMES[usize::from(name) % NAMES.len()];
        labels.insert(name.to_owned(), value.to_owned());
    }
    let _refused_or_not = Asked::from_labels(&labels);
    if let Ok(size) = size.parse::<Size>() {
        // What is printed means the same.
        assert_eq!(size.to_string().parse(), Ok(size));
    }
});
