//! Bundles in throw-away directories, and a host that can do everything but the security modules.

use bundle::{Bundle, HostFacts, Plan, PlanContext, Result};
use launch::image_init::style::Style;
use launch::plan::{CgroupView, RootEntry, Toggle};
use tempfile::TempDir;

pub(crate) const HOST: HostFacts = HostFacts {
    apparmor: Toggle::Off,
    selinux: Toggle::Off,
    last_cap: 40,
    no_new_privs: Toggle::On,
    hardening_optional: Toggle::Off,
    seccomp_filter: Toggle::On,
    seccomp_flags: 0b10_1110,
};

pub(crate) fn context() -> PlanContext {
    PlanContext {
        id: "test-id".to_owned(),
        cgroup_view: CgroupView::Unified {
            own: "/sys/fs/cgroup/test-id".to_owned(),
        },
        host: HOST,
        preserve_fds: 0,
        new_keyring: Toggle::On,
        root_entry: RootEntry::Pivot,
        init_of: |_| Style::Other,
    }
}

/// A bundle with an empty rootfs.
pub(crate) fn bundle(config: &[u8]) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::create_dir(dir.path().join("rootfs")).expect("a directory in it");
    std::fs::write(dir.path().join("config.json"), config).expect("a file in it");
    dir
}

pub(crate) fn plan(config: &[u8], context: &PlanContext) -> Result<Plan> {
    let dir = bundle(config);
    Bundle::load(dir.path())?.plan(context)
}
