//! What can be asked of a container that runs: freezing, limits, processes, what it uses. Beside
//! runc's answers where people and scripts read them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::Place;

fn running(script: &str) -> Place {
    let mut place = Place::new(script);
    place.config["linux"]["cgroupsPath"] = json!(format!("/{}", place.id));
    place.create().ok();
    place.on("start").ok();
    place
}

fn finish(place: Place) {
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

fn stop(place: &Place) {
    let pid = i32::try_from(place.state()["pid"].as_i64().unwrap()).unwrap();
    place.run(&["kill", &place.id, "KILL"]).ok();
    place.wait_stopped(pid);
}

fn stats(place: &Place) -> Value {
    let line = place.run(&["events", "--stats", &place.id]).ok();
    assert_eq!(line.lines().count(), 1, "{line}");
    serde_json::from_str(&line).unwrap()
}

#[test]
fn a_container_is_frozen_and_thawed() {
    let place = running("sleep 100");
    assert_eq!(place.on("pause").ok(), "");
    assert_eq!(place.status(), "paused");
    place.on("pause").fails_with("paused");
    place
        .run(&["exec", &place.id, "true"])
        .fails_with("cannot exec in a paused container");
    assert_eq!(place.on("resume").ok(), "");
    assert_eq!(place.status(), "running");
    place.on("resume").fails_with("container not paused");
    place.run(&["exec", &place.id, "true"]).ok();
    // A frozen container dies of SIGKILL.
    place.on("pause").ok();
    stop(&place);
    place.on("pause").fails_with("container not running");
    place.on("resume").fails_with("container not paused");
    finish(place);
}

#[test]
fn a_created_container_can_be_frozen() {
    let place = Place::new("true");
    place.create().ok();
    place.on("pause").ok();
    place.on("resume").ok();
    finish(place);
}

/// The file of either version that has the weight, and what is in it.
fn weight(place: &Place) -> (bool, String) {
    let version_1 = format!("/sys/fs/cgroup/cpu/{}/cpu.shares", place.id);
    let version_2 = format!("/sys/fs/cgroup/{}/cpu.weight", place.id);
    let found = fs::read_to_string(version_1).map(|text| (true, text));
    let (legacy, text) =
        found.unwrap_or_else(|_none| (false, fs::read_to_string(version_2).unwrap()));
    (legacy, text.trim().to_owned())
}

#[test]
fn limits_come_from_options_a_file_or_standard_input() {
    let place = running("sleep 100");
    let update = |words: &[&str]| place.run(&[["update"].as_slice(), words, &[&place.id]].concat());
    update(&[
        "--memory",
        "64m",
        "--pids-limit",
        "20",
        "--cpu-share",
        "512",
    ])
    .ok();
    let limits = |place: &Place| {
        let stats = stats(place);
        let number = |group: &str, key: &str| stats["data"][group][key].clone();
        (
            number("memory", "usage")["limit"].clone(),
            number("pids", "limit"),
        )
    };
    assert_eq!(limits(&place), (json!(64 << 20), json!(20)));
    assert_eq!(
        weight(&place).1,
        if weight(&place).0 { "512" } else { "59" }
    );

    let file = place.path("limits.json");
    fs::write(&file, json!({"memory": {"limit": 96 << 20}}).to_string()).unwrap();
    // Options beside a file are ignored, and what is not named stays.
    update(&["-r", file.to_str().unwrap(), "--pids-limit", "5"]).ok();
    assert_eq!(limits(&place), (json!(96 << 20), json!(20)));

    let mut child = place
        .command(&["update", "--resources", "-", &place.id])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = json!({"pids": {"limit": 30}, "devices": [{"allow": false, "access": "rwm"}]});
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.to_string().as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    assert_eq!(limits(&place), (json!(96 << 20), json!(30)));
    // Devices stay as they are.
    place
        .run(&["exec", &place.id, "sh", "-c", "echo > /dev/null"])
        .ok();

    update(&["--pids-limit", "-1", "--memory", "-1"]).ok();
    assert_eq!(limits(&place).1, Value::Null);
    finish(place);
}

#[test]
fn limits_that_cannot_be_are_refused_by_name() {
    let place = running("sleep 100");
    for (words, text) in [
        (["--memory", "1x"], "is no size"),
        (["--cpu-quota", "1"], "cpu"),
        (["--cpuset-cpus", "x"], "cpuset"),
        (["--l3-cache-schema", "L3:0=f"], "--l3-cache-schema"),
        (["--resources", "/no/such/file"], "/no/such/file"),
        (["--blkio-weight", "70000"], "--blkio-weight"),
    ] {
        let words = [["update"].as_slice(), &words, &[&place.id]].concat();
        place.run(&words).fails_with(text);
    }
    let file = place.path("limits.json");
    fs::write(&file, "{\"memory\": ").unwrap();
    place
        .run(&["update", "-r", file.to_str().unwrap(), &place.id])
        .fails_with("line 1");
    stop(&place);
    place
        .run(&["update", "--pids-limit", "5", &place.id])
        .fails_with("container not running");
    finish(place);
    let place = Place::new("true");
    place.on("update").fails_with("container does not exist");
    place.finish();
}

#[test]
fn processes_are_those_of_the_container() {
    let place = running("sleep 99 & exec sleep 100");
    let pids = |place: &Place| {
        let line = place.run(&["ps", "--format", "json", &place.id]).ok();
        serde_json::from_str::<Vec<i32>>(&line).unwrap()
    };
    crate::lifecycle::wait_for(|| pids(&place).len() == 2);
    let init = i32::try_from(place.state()["pid"].as_i64().unwrap()).unwrap();
    assert!(pids(&place).contains(&init));
    let table = place.on("ps").ok();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.starts_with("UID "), "{table}");
    let table = place.run(&["ps", &place.id, "-e", "-o", "args,pid"]).ok();
    assert!(table.starts_with("COMMAND"), "{table}");
    place
        .run(&["ps", &place.id, "-e", "-o", "args"])
        .fails_with("couldn't find PID field in ps output");
    place
        .run(&["ps", &place.id, "--no-such-option"])
        .fails_with("ps ended with");
    stop(&place);
    assert_eq!(place.on("ps").ok().lines().count(), 1);
    assert_eq!(place.run(&["ps", "-f", "json", &place.id]).ok(), "[]\n");
    finish(place);
}

#[test]
fn running_out_of_memory_is_told() {
    let place = running("sleep 100");
    place
        .run(&[
            "update",
            "--memory",
            "16m",
            "--memory-swap",
            "16m",
            &place.id,
        ])
        .ok();
    let mut events = place
        .command(&["events", "--interval", "20ms", &place.id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut next = || -> Option<Value> {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    };
    let first = next().unwrap();
    assert_eq!(
        (&first["type"], &first["id"]),
        (&json!("stats"), &json!(place.id))
    );
    // tail keeps what it may have to print: all of it, where there is no end of a line.
    let killed = place.run(&["exec", &place.id, "tail", "/dev/zero"]);
    assert_eq!(killed.code, 137, "{killed:?}");
    let told = std::iter::from_fn(&mut next).find(|event| event["type"] == "oom");
    assert_eq!(told.unwrap(), json!({"type": "oom", "id": place.id}));
    stop(&place);
    // Its end is the end of its events.
    assert!(std::iter::from_fn(next).all(|event| event["type"] == "stats"));
    assert!(events.wait().unwrap().success());
    place
        .on("events")
        .fails_with(&format!("container with id {} is not running", place.id));
    place
        .run(&["events", "--interval", "0s", &place.id])
        .fails_with("must be greater than 0");
    finish(place);
}

/// What is at each path of a document, but for the elements of lists.
fn shape(document: &Value, path: &str, found: &mut Vec<String>) {
    let kind = match document {
        Value::Object(members) => {
            for (key, member) in members {
                shape(member, &format!("{path}.{key}"), found);
            }
            "object"
        }
        Value::Array(_) | Value::Null => "list",
        Value::Number(_) => "number",
        _ => "text",
    };
    found.push(format!("{path}: {kind}"));
}

#[test]
fn what_a_container_uses_has_the_form_of_runc() {
    let place = running("sleep 100");
    let ours = stats(&place);
    place
        .runc(&["run", "--detach", "--bundle", place.bundle_str(), "peer"])
        .ok();
    let theirs = place.runc(&["events", "--stats", "peer"]);
    place.runc(&["delete", "--force", "peer"]).ok();
    let theirs: Value = serde_json::from_str(&theirs.ok()).unwrap();
    let (mut have, mut wanted) = (Vec::new(), Vec::new());
    shape(&ours, "", &mut have);
    shape(&theirs, "", &mut wanted);
    let missing: Vec<_> = wanted.iter().filter(|path| !have.contains(path)).collect();
    assert!(missing.is_empty(), "{missing:?} are not in {ours}");
    finish(place);
}

#[test]
fn failures_have_the_code_of_runc() {
    let place = Place::new("sleep 100");
    place.save();
    // Another name: the cgroup has it, too.
    let peer = format!("{}-peer", place.id);
    let words = ["run", "--detach", "--bundle", place.bundle_str()];
    place.run(&[&words[..], &[&place.id]].concat()).ok();
    place.runc(&[&words[..], &[&peer]].concat()).ok();
    let both = |words: &[&str]| {
        let ours = place.run(&[words, &[&place.id]].concat());
        let theirs = place.runc(&[words, &[&peer]].concat());
        assert_eq!(ours.code, theirs.code, "{words:?}: {ours:?}, {theirs:?}");
    };
    for words in [
        ["resume"].as_slice(),
        &["pause"],
        &["pause"],
        &["resume"],
        &["ps", "--format", "yaml"],
        &["ps", "--format", "json"],
        &["ps"],
        &["update", "--cpu-share", "x"],
        &["update", "--pids-limit", "10"],
        &["events", "--interval", "0s"],
        &["events", "--stats"],
        &["kill", "--all"],
    ] {
        both(words);
    }
    place.runc(&["delete", "--force", &peer]).ok();
    finish(place);
}
