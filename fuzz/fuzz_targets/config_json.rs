//! A bundle's config.json, to the plan.

#![no_main]

use std::path::{Path, PathBuf};

use bundle::{Bundle, HostFacts, PlanContext};
use launch::image_init::style::Style;
use launch::plan::{CgroupView, RootEntry, Toggle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(bundle) = Bundle::parse(PathBuf::from("/bundle"), text) else {
        return;
    };
    let host = HostFacts {
        seccomp_filter: Toggle::On,
        ..HostFacts::read(Path::new("/nowhere"))
    };
    // Refusing is fine; what is planned can be written to the journal.
    let plan = bundle.plan(&PlanContext {
        id: "fuzzed".to_owned(),
        cgroup_view: CgroupView::Unified {
            own: "/sys/fs/cgroup/fuzzed".to_owned(),
        },
        host,
        preserve_fds: 0,
        new_keyring: Toggle::On,
        root_entry: RootEntry::Pivot,
        init_of: |_| Style::Other,
    });
    if let Ok(plan) = plan {
        assert!(!plan.init_for(7).state_creating.is_empty());
    }
});
