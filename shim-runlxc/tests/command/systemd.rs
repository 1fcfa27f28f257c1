//! Containers in scopes of systemd, by a real one: it is pid 1 of namespaces that the test makes, with this host's
//! cgroups of either version.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::Place;

/// The lines below a heading.
fn section<'a>(output: &'a str, heading: &str) -> Vec<&'a str> {
    let lines = output.lines().skip_while(|line| *line != heading).skip(1);
    let found: Vec<_> = lines.take_while(|line| !line.starts_with("== ")).collect();
    assert!(!found.is_empty(), "nothing under {heading:?} in:\n{output}");
    found
}

/// The place's config.json with a cgroup's path, limits and annotations, as NAME.json.
fn write(place: &Place, name: &str, path: Option<&str>, (resources, annotations): (&Value, Value)) {
    let mut config = place.config.clone();
    config["annotations"] = annotations;
    config["linux"]["resources"] = resources.clone();
    if let Some(path) = path {
        config["linux"]["cgroupsPath"] = json!(path);
    }
    fs::write(place.path(&format!("{name}.json")), config.to_string()).unwrap();
}

/// What the checks print.
#[expect(clippy::disallowed_methods, reason = "the test's own systemd")]
fn checked(place: &Place) -> String {
    let command = place.command(&[]);
    std::os::unix::fs::symlink(command.get_program(), place.path("runlxc")).unwrap();
    for (name, text) in [
        ("systemd.sh", include_str!("systemd.sh")),
        ("checks.sh", include_str!("systemd_checks.sh")),
    ] {
        fs::write(place.path(name), text).unwrap();
    }
    let ended = Command::new("timeout")
        .args(["--kill-after=10", "240", "sh"])
        .args([place.path("systemd.sh"), place.path("")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let output = fs::read_to_string(place.path("output")).unwrap_or_default();
    assert!(output.ends_with("== end\n"), "{ended:?}\n{output}");
    output
}

/// The configurations that the checks run.
fn prepare(place: &Place) {
    let limits = json!({
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 44},
        "cpu": {"shares": 512, "quota": 20_000, "period": 100_000, "cpus": "0"},
        "devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "access": "rwm"},
        ],
    });
    let none = json!({});
    let seconds = json!({"org.systemd.property.TimeoutStopSec": "1"});
    let unknown = json!({"org.systemd.property.NoSuchThing": "true"});
    let path = Some("pouch-a.slice:lxc:limited");
    write(place, "limited", path, (&limits, seconds));
    write(place, "plain", None, (&none, json!({})));
    write(place, "wrong", Some("/a/b"), (&none, json!({})));
    let path = Some("pouch-a.slice:lxc:wrong");
    write(place, "property", path, (&none, unknown));
    let slice = json!({"org.systemd.property.Slice": "'other.slice'"});
    write(place, "slice", path, (&none, slice));
}

/// What names that another has, and names and properties that are none, lead to.
fn check_refusals(output: &str) {
    let others = section(output, "== of another");
    assert!(
        others[0].contains("lxc-limited.scope has 1 processes"),
        "{output}"
    );
    assert_eq!(others[1..], ["code 1", "ActiveState=active"], "{output}");
    let others = section(output, "== of another in another slice");
    let taken = "systemd: start lxc-limited.scope: Unit lxc-limited.scope";
    assert!(others[0].contains(taken), "{output}");
    let expected = ["code 1", "ActiveState=active", "Slice=pouch-b.slice"];
    assert_eq!(others[1..], expected, "{output}");
    let meanwhile = section(output, "== of another meanwhile");
    assert_eq!(meanwhile[1], "code 1", "{output}");
    let expected = ["ActiveState=active", "LoadState=not-found"];
    assert_eq!(meanwhile[2..], expected, "{output}");
    let wrong = section(output, "== wrong");
    assert!(wrong[0].contains("of format"), "{output}");
    let property = "systemd: start lxc-wrong.scope: Cannot set property NoSuchThing";
    assert!(wrong[2].contains(property), "{output}");
    assert!(wrong[4].contains("sets this property itself"), "{output}");
    assert_eq!([wrong[1], wrong[3], wrong[5]], ["code 1"; 3], "{output}");
    assert_eq!(wrong.len(), 6, "something is left: {output}");
}

#[test]
fn a_scope_of_systemd_holds_a_container_keeps_its_limits_and_goes_with_it() {
    let place = Place::new("sleep 1000");
    prepare(&place);
    let output = checked(&place);
    let check = |heading: &str, expected: &[&str]| {
        assert_eq!(section(&output, heading), expected, "{output}");
    };
    let is_legacy = Path::new("/sys/fs/cgroup/pids").is_dir();
    let (memory, weight, raised) = if is_legacy {
        ("MemoryLimit", "CPUShares=512", "CPUShares=2048")
    } else {
        ("MemoryMax", "CPUWeight=59", "CPUWeight=174")
    };
    let limits = |memory: &str, pids: &str, shares: &str| {
        let rest = if is_legacy {
            [shares, "20000", "0", "THAWED"]
        } else {
            [weight_of(shares), "20000 100000", "0", "0"]
        };
        [&[memory, pids][..], &rest].concat().join("\n")
    };
    let gone = "LoadState=not-found";
    let unit = [
        "ActiveState=active".to_owned(),
        "CPUQuotaPerSecUSec=200ms".to_owned(),
        weight.to_owned(),
        "Delegate=yes".to_owned(),
        "Description=runlxc container limited, init PID".to_owned(),
        "DevicePolicy=strict".to_owned(),
        format!("{memory}=67108864"),
        "Slice=pouch-a.slice".to_owned(),
        "TasksMax=44".to_owned(),
        "TimeoutStopUSec=1s".to_owned(),
        gone.to_owned(),
    ];
    let unit: Vec<_> = unit.iter().map(String::as_str).collect();
    check("== without a bus", &unit);
    let first = limits("67108864", "44", "512");
    let first: Vec<_> = first.lines().collect();
    check("== limits", &first);
    check("== members", &["0", "0"]);
    check("== reloaded", &[&first[..], &["allowed"]].concat());
    let memory = format!("{memory}=134217728");
    let second = limits("134217728", "33", "2048");
    let second: Vec<_> = second.lines().collect();
    let told = [raised, memory.as_str(), "TasksMax=33"];
    check("== updated", &[&told[..], &second].concat());
    check("== bandwidth", &["20000 50000", "25000 50000"]);
    check("== paused", &["\"status\": \"paused\""]);
    check("== deleted", &[gone]);
    check("== stopped by systemd", &["\"status\": \"stopped\"", gone]);
    check("== without a path", &["/system.slice/runlxc-plain.scope"]);
    check_refusals(&output);
    place.finish();
}

/// The weight of version 2 for these shares.
fn weight_of(shares: &str) -> &'static str {
    if shares == "512" { "59" } else { "174" }
}
