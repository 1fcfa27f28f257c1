//! The command and its daemon as processes: what operators type, and what they get.
//!
//! The back end is `none`, which every machine has; limits that hold are tested with theirs.

#![expect(clippy::unwrap_used, reason = "a test's own functions")]

mod acquaintance;
#[path = "../rig/disk.rs"]
mod disk;
mod full;
mod process;

use std::{fs, path::Path};

use process::{Daemon, Finished, command};
use serde_json::Value;
use sys::Signal;

const SIZE: &str = "containerd.io/snapshot/max-size";

/// Limits are taken and told of, though none holds.
const WARN: &str = "[backend]\nkind = 'none'\non_unsupported = 'warn'\n";

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, 0, "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap()
}

#[test]
fn snapshots_are_listed_and_found_by_key_name_and_beginning() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("k8s.io/7/0123456789ab", &[(SIZE, "10737418240")]);
    daemon.prepare("default/8/web", &[]);
    let table = daemon.run(&["ls"]).stdout;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("KEY "), "{table}");
    assert!(lines[1].starts_with("default/8/web "), "{table}");
    assert!(lines[2].contains(" 10G "), "{table}");

    for name in ["k8s.io/7/0123456789ab", "0123456789ab", "0123"] {
        let row = json(&daemon.run(&["get", name, "--output", "json"]));
        assert_eq!(row["key"], "k8s.io/7/0123456789ab", "{name}");
        assert_eq!(row["limit_bytes"], 10_737_418_240_u64);
        assert_eq!(row["kind"], "active");
        assert_eq!(row["back_end"], "none");
    }
    let missing = daemon.run(&["get", "nobody"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("\"nobody\""), "{missing:?}");
    assert_eq!(daemon.run(&["ls", "nobody"]), missing);
    let events = daemon.run(&["events", "nobody"]);
    assert!(events.stderr.contains("no event of"), "{events:?}");
    let rows = json(&daemon.run(&["ls", "web", "-o", "json"]));
    assert_eq!(rows.as_array().unwrap().len(), 1);
    let once = daemon.run(&["top", "--once", "-n", "1"]).stdout;
    assert_eq!(once.lines().count(), 2, "{once}");
}

#[test]
fn names_that_fit_several_are_refused_with_their_keys() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("a/1/web", &[]);
    daemon.prepare("b/2/web", &[]);
    let refused = daemon.run(&["set", "web", "1g"]);
    assert_eq!(refused.code, 1);
    for word in ["a/1/web", "b/2/web", "by its key"] {
        assert!(refused.stderr.contains(word), "{refused:?}");
    }
    assert_eq!(daemon.run(&["set", "b/2/web", "1g"]).code, 0);
}

#[test]
fn what_cannot_be_written_to_has_no_limit_and_is_named() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("default/1/work", &[]);
    daemon.commit("default/1/work", "default/2/layer");
    let refused = daemon.run(&["set", "layer", "1g"]);
    assert_eq!(refused.code, 1);
    let expected = "default/2/layer is a committed snapshot, and only writable snapshots";
    assert!(refused.stderr.contains(expected), "{refused:?}");
}

#[test]
fn limit_is_set_and_taken_back_without_containerd_and_says_so() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[(SIZE, "1g")]);
    let set = daemon.run(&["set", "web", "2g", "--warn", "80%", "--mode", "account"]);
    assert_eq!(set.code, 0, "{set:?}");
    assert!(set.stderr.contains("containerd was not told"), "{set:?}");
    let row = json(&daemon.run(&["get", "web", "-o", "json"]));
    assert_eq!(row["limit_bytes"], 2_147_483_648_u64);
    assert_eq!(row["mode"], "account");
    assert_eq!(row["warn_percent"], serde_json::json!([80]));
    assert_eq!(
        daemon.label("default/1/web", SIZE).as_deref(),
        Some("2147483648")
    );

    daemon.run(&[
        "set", "web", "default", "--warn", "default", "--mode", "default",
    ]);
    let row = json(&daemon.run(&["get", "web", "-o", "json"]));
    assert_eq!(row.get("limit_bytes"), None, "{row}");
    assert_eq!(daemon.label("default/1/web", SIZE), None);

    for (words, expected) in [
        (&["set", "web", "-1"][..], "-1"),
        (&["set", "web", "1.5g"], "fraction"),
        (&["set", "web", "--inodes", "many"], "quota.inodes"),
        (&["set", "web", "--mode", "loud"], "hard, account and off"),
        (
            &["set", "nobody", "1g"],
            "no snapshot has the key or the name",
        ),
    ] {
        let refused = daemon.run(words);
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains(expected), "{refused:?}");
    }
}

#[test]
fn a_limit_that_is_below_the_usage_is_taken_and_explained() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[(SIZE, "1g")]);
    fs::write(daemon.contents(1).join("file"), vec![1; 1 << 20]).unwrap();
    let set = daemon.run(&["set", "web", "64k"]);
    assert_eq!(set.code, 0, "{set:?}");
    assert!(set.stderr.contains("more than the limit"), "{set:?}");
}

#[test]
fn lift_and_set_are_events_and_a_lift_ends() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[(SIZE, "1g")]);
    let follower = daemon.follow();
    daemon.run(&["set", "web", "2g"]);
    let lifted = daemon.run(&["lift", "web", "--for", "1s"]);
    assert!(lifted.stdout.contains("no limit until"), "{lifted:?}");
    let row = json(&daemon.run(&["get", "web", "-o", "json"]));
    assert!(row["lifted_until"].is_string(), "{row}");
    let seen = follower.lines(3);
    let what: Vec<_> = seen.iter().map(|event| event["what"].clone()).collect();
    assert_eq!(what, ["set", "lifted", "limited-again"]);
    assert_eq!(seen[0]["key"], "default/1/web");
    assert_eq!(seen[0]["limit_bytes"], 2_147_483_648_u64);
    assert_eq!(
        seen[0]["text"],
        "the limit was set: 2147483648 bytes, only counted"
    );
    let row = json(&daemon.run(&["get", "web", "-o", "json"]));
    assert_eq!(row.get("lifted_until"), None, "{row}");

    let past = daemon.run(&["events"]).stdout;
    assert_eq!(past.lines().count(), 3, "{past}");
    let refused = daemon.run(&["lift", "web", "--for", "25h"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("24h"), "{refused:?}");
    // The stream ends with the daemon, and not by an error.
    daemon.stop();
    assert_eq!(follower.end(), 0);
}

#[test]
fn a_lift_ends_with_the_daemon_and_labels_outlive_it() {
    let mut daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[(SIZE, "1g")]);
    daemon.run(&["lift", "web", "--for", "1h"]);
    daemon.stop();
    assert!(daemon.log().contains("limited-again"), "{}", daemon.log());
    daemon.start_again();
    let row = json(&daemon.run(&["get", "web", "-o", "json"]));
    assert_eq!(row.get("lifted_until"), None, "{row}");
    assert_eq!(row["limit_bytes"], 1_073_741_824_u64);
}

#[test]
fn doctor_tells_what_is_odd_and_makes_a_lost_store_anew() {
    let mut daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[(SIZE, "1g")]);
    let found = json(&daemon.run(&["doctor", "--output", "json"]));
    let text = found.to_string();
    assert!(text.contains("serves 1 snapshots"), "{text}");
    assert!(text.contains("the back end is none"), "{text}");
    let root = daemon.root();
    let rebuild = ["doctor", "--rebuild", "--root", root.to_str().unwrap()];
    let refused = daemon.run(&rebuild);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("in use by process"), "{refused:?}");

    daemon.stop();
    let elsewhere = tempfile::tempdir().unwrap();
    let nowhere = [
        "doctor",
        "--rebuild",
        "--root",
        elsewhere.path().to_str().unwrap(),
    ];
    let refused = daemon.run(&nowhere);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("the root of no snapshotter"),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    fs::write(root.join("store.redb"), "no store").unwrap();
    let rebuilt = daemon.run(&rebuild);
    assert_eq!(rebuilt.code, 0, "{rebuilt:?}");
    assert!(
        rebuilt.stdout.contains("1 snapshots are there again"),
        "{rebuilt:?}"
    );
    daemon.start_again();
    let row = json(&daemon.run(&["get", "web", "-o", "json"]));
    assert_eq!(row["limit_bytes"], 1_073_741_824_u64);
}

#[test]
fn configuration_read_again_counts_for_what_is_there() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[]);
    let limit = |daemon: &Daemon| {
        let row = json(&daemon.run(&["get", "web", "-o", "json"]));
        row.get("limit_bytes").and_then(Value::as_u64)
    };
    assert_eq!(limit(&daemon), None);
    daemon.reload(&format!("{WARN}[quota]\ndefault_size = '3g'\n"));
    assert_eq!(limit(&daemon), Some(3 << 30));
    // What makes no sense changes nothing.
    daemon.reload(&format!("{WARN}[quota]\ndefault_size = 'big'\n"));
    let refused = "config.toml: quota.default_size: ";
    assert!(daemon.log().contains(refused), "{}", daemon.log());
    // The commands read the file, too.
    let told = daemon.run(&["get", "web"]);
    assert!(told.stderr.contains(refused), "{told:?}");
    fs::write(daemon.directory().join("config.toml"), WARN).unwrap();
    assert_eq!(limit(&daemon), Some(3 << 30));
    daemon.reload("name = 'other'\n[backend]\nkind = 'none'\non_unsupported = 'warn'\n");
    assert_eq!(limit(&daemon), None);
    assert!(
        daemon.log().contains("waits for a restart"),
        "{}",
        daemon.log()
    );
}

#[test]
fn limit_that_cannot_hold_fails_the_container_unless_the_configuration_says_otherwise() {
    let daemon = Daemon::start("[backend]\nkind = 'none'\n");
    let refused = daemon
        .try_prepare("default/1/web", &[(SIZE, "1g")])
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("probe"), "{refused:?}");
    daemon.prepare("default/1/web", &[]);
    let refused = daemon.run(&["set", "web", "1g"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("snapshot \"default/1/web\" (number 2) was made without a limit"),
        "{refused:?}"
    );
    assert_eq!(daemon.label("default/1/web", SIZE), None);
}

#[test]
fn a_daemon_that_cannot_start_says_why_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let file = file.to_str().unwrap();
    let check = |text: &str, expected: &str| {
        fs::write(file, text).unwrap();
        let failed = command(&["serve", "--config", file]);
        assert_eq!(failed.code, 1, "{failed:?}");
        assert_eq!(failed.stderr.lines().count(), 1, "{failed:?}");
        assert!(failed.stderr.contains(expected), "{failed:?}");
    };
    check(
        "rot = '/x'",
        "rot: unknown key; the nearest known one is \"root\"",
    );
    check("root = 'x'", "no absolute path");
    check("[backend]\nkind = 'zfs'", "prjquota, btrfs");
    let missing = command(&["serve", "--config", "/nowhere/config.toml"]);
    assert!(
        missing.stderr.contains("/nowhere/config.toml"),
        "{missing:?}"
    );
    let deaf = command(&["ls", "--address", "/nowhere/daemon.sock"]);
    assert_eq!(deaf.code, 1);
    assert!(deaf.stderr.contains("serve"), "{deaf:?}");
}

#[test]
fn commands_without_a_daemon_explain_and_print() {
    let parsed = json(&command(&["parse", "/=10g&/data=20g", "-o", "json"]));
    assert_eq!(parsed["rules"][1]["bytes"], 21_474_836_480_u64);
    assert_eq!(parsed["label"], format!("{SIZE}=10737418240"));
    assert_eq!(command(&["parse", "/a*=1g"]).code, 2);
    let volumes = command(&["volumes", "/data=1g", "/data=/proc"]);
    assert_eq!(volumes.code, 1);
    assert!(volumes.stderr.contains("/proc"), "{volumes:?}");
    assert_eq!(command(&["volumes", "/data=1g"]).code, 2);

    let two = command(&["config", "containerd", "--version", "2", "--without-cri"]);
    assert!(two.stdout.contains("version = 2"), "{two:?}");
    assert!(!two.stdout.contains("plugins.\""), "{two:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = command(&["completion", shell]);
        assert!(script.stdout.contains("snapshotter-quota"), "{shell}");
    }
    let version = command(&["--version"]).stdout;
    let expected = format!("snapshotter-quota {}\ncommit: ", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&expected), "{version}");

    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("a/b");
    let root = root.to_str().unwrap();
    let rows = json(&command(&["probe", "--root", root, "-o", "json"]));
    assert!(!temp.path().join("a").exists(), "a probe leaves nothing");
    let none = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["back_end"] == "none");
    assert_eq!(none.unwrap()["works"], true);
}

#[test]
fn metrics_tell_of_limits_events_and_requests() {
    let daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[(SIZE, "1g")]);
    daemon.run(&["set", "web", "2g"]);
    let page = daemon.metrics();
    for line in [
        "snapshotter_quota_back_end_info{kind=\"none\"} 1",
        "snapshotter_quota_snapshots 1",
        "snapshotter_quota_limit_bytes{key=\"default/1/web\",id=\"1\"} 2147483648",
        "snapshotter_quota_limit_lifted{key=\"default/1/web\",id=\"1\"} 0",
        "snapshotter_quota_events_total{what=\"set\"} 1",
        "snapshotter_quota_requests_total{method=\"Prepare\",code=\"OK\"} 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[test]
fn a_second_daemon_is_refused_and_a_killed_one_has_a_successor() {
    let mut daemon = Daemon::start(WARN);
    daemon.prepare("default/1/web", &[]);
    let second = daemon.run(&["serve"]);
    assert_eq!(second.code, 1, "{second:?}");
    let pid = format!("process {}", daemon.pid());
    assert!(second.stderr.contains(&pid), "{second:?}");
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    daemon.start_again();
    assert_eq!(
        json(&daemon.run(&["ls", "-o", "json"]))
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let left = Path::new(daemon.directory()).join("d.sock.new");
    assert!(!left.exists());
}
