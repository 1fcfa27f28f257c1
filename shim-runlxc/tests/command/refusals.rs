//! What is refused: in one line, by name, with nothing left.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Place, freezer, write_script};

fn refused(change: impl FnOnce(&mut Place), text: &str) {
    let mut place = Place::new("true");
    change(&mut place);
    place.create().fails_with(text);
    place.finish();
}

#[test]
fn bad_configurations_name_the_field() {
    refused(|p| p.config["root"]["path"] = json!("nowhere"), "nowhere");
    refused(
        |p| p.config["annotations"] = json!({"org.pouch.rihc": "1"}),
        "org.pouch.rihc",
    );
    refused(|p| p.config["process"]["args"] = json!([]), "process.args");
    refused(
        |p| p.config["process"]["args"] = json!(["/no/such/program"]),
        "/no/such/program",
    );
    refused(|p| p.config["process"]["cwd"] = json!("relative"), "cwd");
    refused(
        |p| p.config["process"]["cwd"] = json!("/bin/busybox"),
        "/bin/busybox",
    );
    refused(|p| p.config["linux"] = Value::Null, "linux");
    refused(
        |p| p.config["linux"]["namespaces"] = json!([{"type": "pid"}]),
        "mount",
    );
    refused(
        |p| {
            p.config["linux"]["namespaces"] =
                json!([{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": "/no/net"}]);
        },
        "/no/net",
    );
    refused(|p| p.config["mounts"][0]["source"] = json!(1), "mounts");
    refused(
        |p| {
            let mounts = p.config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}));
        },
        "/no/such/source",
    );
}

#[test]
fn a_broken_config_is_refused_with_its_place() {
    let place = Place::new("true");
    let words = ["create", "-b", place.bundle_str(), &place.id];
    place.run(&words).fails_with("config.json");
    fs::write(place.bundle().join("config.json"), "{\"ociVersion\": ").unwrap();
    place.run(&words).fails_with("line 1");
    fs::write(place.bundle().join("config.json"), "[]").unwrap();
    place.run(&words).fails_with("config.json");
    place.finish();
}

#[test]
fn ids_are_plain_names() {
    let place = Place::new("true");
    place.save();
    for id in ["a/b", "..", "", "x y"] {
        for words in [
            ["create", "-b", place.bundle_str(), id].as_slice(),
            &["delete", "--force", id],
            &["state", id],
        ] {
            let said = place.run(words);
            assert!(
                said.err.contains("container ID format") || said.err.contains("cannot be empty"),
                "{said:?}"
            );
        }
    }
    place.finish();
}

#[test]
fn states_that_do_not_fit_are_told() {
    let place = Place::new("sleep 100");
    place.create().ok();
    place
        .create()
        .fails_with("container with given ID already exists");
    place.on("start").ok();
    place
        .on("start")
        .fails_with("cannot start an already running container");
    place.on("delete").fails_with(&format!(
        "cannot delete container {} that is not stopped: running",
        place.id
    ));
    let pid = i32::try_from(place.state()["pid"].as_i64().unwrap()).unwrap();
    place.run(&["kill", &place.id, "KILL"]).ok();
    place.wait_stopped(pid);
    place.on("kill").fails_with("container not running");
    place.run(&["kill", "--all", &place.id, "KILL"]).ok();
    place
        .on("start")
        .fails_with("cannot start a container that has stopped");
    place.on("delete").ok();
    place.on("delete").fails_with("container does not exist");
    place.run(&["delete", "--force", &place.id]).ok();
    place.on("kill").fails_with("container does not exist");
    place.finish();
}

#[test]
fn a_created_container_can_be_deleted() {
    let place = Place::new("true");
    place.create().ok();
    place.on("delete").ok();
    place.finish();
}

#[test]
fn options_that_cannot_be_honoured_are_refused() {
    let place = Place::new("true");
    if !std::path::Path::new("/run/systemd/system").exists() {
        place.save();
        let words = ["--systemd-cgroup", "create", "--bundle"];
        let words = [&words[..], &[place.bundle_str(), &place.id]].concat();
        place.run(&words).fails_with("not booted with systemd");
    }
    place.run(&["--root", "/", "list"]).fails_with("--root");
    place
        .run(&["kill", "nobody", "NOPE"])
        .fails_with("container does not exist");
    place.finish();
}

#[test]
fn a_memory_limit_that_is_too_small_to_start_is_named() {
    // Also when it is no multiple of a page, which the kernel makes of it.
    for limit in [65536, 1000] {
        refused(
            |p| p.config["linux"]["resources"] = json!({"memory": {"limit": limit}}),
            &format!(
                "the container's init was killed for want of memory: the memory limit of {limit} \
                 bytes is too small to start"
            ),
        );
    }
}

#[test]
fn a_stub_of_another_version_is_named_when_it_does_not_understand() {
    let place = Place::new("true");
    place.save();
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    // Says hello, and ends at the first message.
    let stub = r#"#!/bin/sh
case $1 in
--version) echo runlxc-init 0.0.1 ;;
init) exec setpriv --pdeathsig clear sh -c '
    printf "\001\000\000\000\000" >&$0
    dd bs=9 count=1 <&$0 >/dev/null 2>&1' "$2" ;;
esac
"#;
    write_script(&bin.join("runlxc-init"), stub);
    let said = place.run_copy(&bin, &["create", "-b", place.bundle_str(), &place.id]);
    let path = bin.join("runlxc-init").display().to_string();
    let hint = format!("{path} says that it is \"runlxc-init 0.0.1\", and \"runlxc-init ");
    assert!(said.err.contains(&hint), "{said:?}");
    said.fails_with("belongs to this program: install both from one release");
    place.finish();
}

#[test]
fn commands_that_are_not_there_are_told_in_one_line() {
    let place = Place::new("true");
    place.run(&["crate", "x"]).fails_with(
        "unrecognized subcommand 'crate'; some similar subcommands exist: 'update', 'state', \
         'create'; see --help",
    );
    place.run(&["frobnicate"]).fails_with("see --help");
    place.finish();
}

#[test]
fn capabilities_that_cannot_be_had_are_told() {
    let mut place = Place::new("grep Cap /proc/self/status");
    // Ambient ones without inheritable ones, as `runc spec` once wrote it.
    let some = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    place.config["process"]["capabilities"] = json!({
        "bounding": some, "effective": some, "permitted": some, "ambient": some,
    });
    let said = place.run_program();
    assert_eq!(said.code, 0, "{said:?}");
    let told = "can't raise ambient capability CAP_KILL: ";
    assert!(said.err.contains(told), "{said:?}");
    assert_eq!(said.err.lines().count(), 3, "{said:?}");
    assert!(said.out.contains("CapAmb:\t0000000000000000"), "{said:?}");

    let unknown = json!(["CAP_KILL", "CAP_OF_TOMORROW", "kill"]);
    place.config["process"]["capabilities"] =
        json!({"bounding": unknown, "effective": unknown, "permitted": unknown});
    let said = place.run_program();
    assert_eq!(said.code, 0, "{said:?}");
    let told = "ignoring unknown or unavailable capabilities: [CAP_OF_TOMORROW kill]";
    assert!(said.err.contains(told), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");

    place.config["process"]["capabilities"] =
        json!({"bounding": ["CAP_CHOWN"], "inheritable": ["CAP_CHOWN", "CAP_KILL"]});
    let told = "inheritable: CAP_KILL not in the bounding set: Operation not permitted";
    place.create().fails_with(told);

    // Why it is not there is told as well.
    place.config["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "KILL"]);
    let said = place.create();
    let ignored = "ignoring unknown or unavailable capabilities: [KILL]";
    assert!(
        said.err.contains(ignored) && said.err.contains(told),
        "{said:?}"
    );
    place.finish();
}

#[test]
fn a_frozen_cgroup_of_somebody_else_stays() {
    let mut place = Place::new("true");
    place.config["linux"]["cgroupsPath"] = json!(format!("/{}", place.id));
    let (file, frozen) = freezer(&place.id);
    let theirs = file.parent().unwrap();
    fs::create_dir(theirs).unwrap();
    fs::write(&file, frozen).unwrap();
    place.create().fails_with("unexpectedly frozen");
    assert!(theirs.exists());
    fs::remove_dir(theirs).unwrap();
    place.finish();
}
