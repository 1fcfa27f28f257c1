//! The process of an exec, and resources to be applied to a running container.

#![no_main]

use bundle::{HostFacts, ProcessContext, capabilities};
use launch::plan::{Labels, Scheduling, Toggle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(parsed) = bundle::parse_process(text) {
        let context = ProcessContext {
            host: HostFacts::read(std::path::Path::new("/nowhere")),
            preserve_fds: 0,
            new_keyring: Toggle::Off,
            seccomp: None,
            capabilities: capabilities::NONE,
            labels: Labels::default(),
            scheduling: Scheduling::default(),
        };
        let _refused_or_not = bundle::process_plan(&parsed.value, &context);
    }
    if let Ok(parsed) = bundle::parse_resources(text) {
        let _refused_or_not = bundle::resources(&parsed);
    }
});
