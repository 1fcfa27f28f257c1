//! Whole plans of whole configurations: `golden/NAME.json` in, `golden/NAME.plan` and, with a
//! filter, `golden/NAME.bpf` out. `UPDATE_GOLDEN=1` writes them anew, for a reader to check.
//!
//! ctr and ctr-privileged are what containerd 1.6.20 wrote (`ctr containers create --rootfs`);
//! nerdctl is such a file with seccomp, and with what nerdctl 1.7 adds; cri is modelled on what
//! containerd's CRI writes for a container of a pod; everything has what nobody uses at once.

// Filters are those of one architecture.
#![cfg(target_arch = "x86_64")]

mod throwaway;

use std::fmt::Write;
use std::path::Path;

use throwaway::{context, plan};

fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).expect("a golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} differs, see UPDATE_GOLDEN; now:\n{actual}"
    );
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let config = std::fs::read(path.with_extension("json")).expect("the input is there");
    let mut plan = plan(&config, &context()).expect("a plan");
    if let Some(filter) = plan.init.process.seccomp.as_mut() {
        golden(
            &format!("{name}.bpf"),
            &disassembly(&std::mem::take(&mut filter.program)),
        );
    }
    let bundle = plan.bundle.to_str().expect("UTF-8").to_owned();
    let text = serde_json::to_string_pretty(&plan).expect("plans serialize");
    golden(
        &format!("{name}.plan"),
        &(text.replace(&bundle, "/BUNDLE") + "\n"),
    );
}

fn disassembly(program: &[u64]) -> String {
    let mut out = String::new();
    for (at, word) in program.iter().enumerate() {
        let (code, k) = (word & 0xffff, word >> 32);
        let target = |skip: u64| at as u64 + 1 + skip;
        let (holds, fails) = (target(word >> 16 & 0xff), target(word >> 24 & 0xff));
        let text = match code {
            0x20 => format!("ld [{k}]"),
            0x54 => format!("and {k:#x}"),
            0x05 => format!("ja {}", target(k)),
            0x06 => format!("ret {k:#x}"),
            0x15 => format!("jeq {k:#x} {holds} {fails}"),
            0x25 => format!("jgt {k:#x} {holds} {fails}"),
            0x35 => format!("jge {k:#x} {holds} {fails}"),
            other => format!("? {other:#x}"),
        };
        writeln!(out, "{at:4} {text}").expect("strings take everything");
    }
    out
}

#[test]
fn what_ctr_writes_becomes_a_plan() {
    check("ctr");
}

#[test]
fn what_ctr_writes_for_a_privileged_container_becomes_a_plan() {
    check("ctr-privileged");
}

#[test]
fn what_nerdctl_writes_becomes_a_plan() {
    check("nerdctl");
}

#[test]
fn what_cri_writes_becomes_a_plan() {
    check("cri");
}

#[test]
fn every_field_becomes_part_of_a_plan() {
    check("everything");
}

#[test]
fn the_example_of_the_spec_command_becomes_a_plan() {
    use launch::plan::Toggle;
    for toggle in [Toggle::Off, Toggle::On] {
        let text = bundle::example::text(toggle);
        let plan = plan(text.as_bytes(), &context()).expect("a plan");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        assert_eq!(plan.init.cgroup_namespace, toggle);
        assert_eq!(plan.init.process.args, ["sh"]);
    }
}

#[test]
fn the_rootless_example_is_one_user_in_a_namespace_of_the_host_s_network() {
    use launch::plan::Toggle;
    for toggle in [Toggle::Off, Toggle::On] {
        let text = bundle::example::rootless(toggle, 1000, 100);
        let plan = plan(text.as_bytes(), &context()).expect("a plan");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        let map = |host_id| {
            vec![bundle::IdMap {
                container_id: 0,
                host_id,
                size: 1,
            }]
        };
        assert_eq!((plan.uid_maps, plan.gid_maps), (map(1000), map(100)));
        let kinds: Vec<_> = plan.namespaces.iter().map(|n| n.kind.as_str()).collect();
        assert!(
            kinds.contains(&"user") && !kinds.contains(&"network"),
            "{kinds:?}"
        );
        let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let sys = json_mount(&config, "/sys");
        assert_eq!(
            (&sys["source"], &sys["options"][0]),
            (&"/sys".into(), &"rbind".into())
        );
        let devpts = json_mount(&config, "/dev/pts")["options"].to_string();
        assert!(!devpts.contains("gid="), "{devpts}");
        assert!(config["linux"].get("resources").is_none());
    }
}

fn json_mount<'a>(config: &'a serde_json::Value, at: &str) -> &'a serde_json::Value {
    let mounts = config["mounts"].as_array().expect("mounts");
    let mount = mounts.iter().find(|mount| mount["destination"] == at);
    mount.expect("it is there")
}
