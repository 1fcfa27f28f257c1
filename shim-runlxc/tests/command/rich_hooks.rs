//! Hooks in rich containers by the command: their place among the OCI hooks, and who is killed.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Place, names};
use crate::lifecycle::wait_for;

/// A rich container in which the folder of the test is `/log`.
fn place(script: &str, hooks: &[(&str, &str)]) -> Place {
    let mut place = Place::new(script);
    let mut annotations = json!({"org.pouch.rich.mode": "dumb-init"});
    for (key, value) in hooks {
        annotations[format!("org.pouch.rich.{key}")] = json!(value);
    }
    place.config["annotations"] = annotations;
    let log = json!({
        "destination": "/log",
        "type": "bind",
        "source": place.path("log"),
        "options": ["rbind"],
    });
    place.config["mounts"].as_array_mut().unwrap().push(log);
    fs::create_dir(place.path("log")).unwrap();
    place
}

const PRESTART: (&str, &str) = ("prestart", "sh:echo rich-prestart >>/log/order");
const POSTSTOP: (&str, &str) = ("poststop", "sh:echo rich-poststop >>/log/order");

fn order(place: &Place) -> String {
    let text = fs::read_to_string(place.path("log/order")).unwrap_or_default();
    text.trim_end().replace('\n', " ")
}

#[test]
fn they_stand_between_the_oci_hooks() {
    let mut place = place(
        "echo program >>/log/order; sleep 100",
        &[PRESTART, POSTSTOP],
    );
    let file = place.path("log/order").display().to_string();
    let at = |point: &str, file: &str| {
        let script = format!("echo {point} >>{file}");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let mut hooks = json!({"startContainer": at("startContainer", "/log/order")});
    for point in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        hooks[point] = at(point, &file);
    }
    place.config["hooks"] = hooks;
    place.create().ok();
    assert_eq!(order(&place), "prestart createRuntime createContainer");
    place.on("start").ok();
    wait_for(|| order(&place).contains("program") && order(&place).contains("poststart"));
    let started = order(&place);
    assert!(
        started
            .starts_with("prestart createRuntime createContainer rich-prestart startContainer p"),
        "{started}"
    );
    place.run(&["delete", "--force", &place.id]).ok();
    assert_eq!(order(&place), format!("{started} rich-poststop poststop"));
    place.finish();
}

#[test]
fn they_have_the_rights_of_the_container_at_most_and_its_view() {
    let facts = "id -u; pwd; echo $A $HOME; cat /proc/1/comm; grep -E '^(CapBnd|NoNewPrivs)' \
                 /proc/self/status; cat /proc/self/cgroup; hostname; cat /only";
    let before = format!("sh:({facts}) >/log/before");
    // Not through a pipe, at whose other end a process may be there already or not.
    let count = "ls /proc >/log/list; grep -c '^[0-9]' /log/list";
    let after = format!("sh:({facts}; {count}) >/log/after; sleep 1000 &");
    let mut place = place(
        "echo kept >/only; until [ -e /log/go ]; do sleep 0; done",
        &[("prestart", &before), ("poststop", &after)],
    );
    fs::write(place.rootfs().join("only"), "made\n").unwrap();
    place.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    place.config["process"]["noNewPrivileges"] = json!(true);
    place.config["process"]["env"] = json!(["PATH=/bin", "A=1"]);
    place.config["hostname"] = json!("rich");
    fs::set_permissions(
        place.rootfs().join("only"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    place.create().ok();
    let cgroups = format!("/proc/{}/cgroup", place.state()["pid"]);
    let cgroups = fs::read_to_string(cgroups).unwrap();
    place.on("start").ok();
    let pid = place.state()["pid"].as_i64().unwrap();
    fs::write(place.path("log/go"), "").unwrap();
    place.wait_stopped(pid.try_into().unwrap());
    assert!(
        !place.path("log/after").exists(),
        "nobody looks before delete"
    );
    place.on("delete").ok();
    let read = |name: &str| fs::read_to_string(place.path("log").join(name)).unwrap();
    let (before, after) = (read("before"), read("after"));
    let head = "0\n/\n1 /\nrunlxc-init\nNoNewPrivs:\t1\n";
    for (text, file) in [(&before, "made"), (&after, "kept")] {
        let mut lines: Vec<_> = text.lines().collect();
        let at = lines.iter().position(|l| l.starts_with("CapBnd")).unwrap();
        let bounding = lines.remove(at);
        assert_eq!(bounding, "CapBnd:\t0000000020000420", "{text}");
        let text = lines.join("\n");
        assert!(text.starts_with(head), "{text}");
        assert!(
            text.contains(cgroups.trim_end()),
            "{text} is not in {cgroups}"
        );
        assert!(text.contains(&format!("\nrich\n{file}")), "{text}");
    }
    assert!(
        after.ends_with("\n4\n"),
        "pid 1, the shell, a subshell, ls: {after}"
    );
    place.finish();
}

#[test]
fn one_that_was_not_started_has_nothing_to_stop() {
    let place = place("true", &[PRESTART, POSTSTOP]);
    place.create().ok();
    place.run(&["delete", "--force", &place.id]).ok();
    assert_eq!(order(&place), "");
    place.finish();
}

#[test]
fn a_failed_prestart_fails_the_start_and_poststop_follows() {
    let failing = (
        "prestart",
        "sh:echo begun >>/log/order; echo no disk >&2; exit 3",
    );
    let place = place("echo program >>/log/order", &[failing, POSTSTOP]);
    place.create().ok();
    place.on("start").fails_with(
        "org.pouch.rich.prestart (\"echo begun >>/log/order; echo no disk >&2; exit 3\"): exit status 3, \
         it said \"no disk\"",
    );
    assert_eq!(place.status(), "stopped");
    place.on("delete").ok();
    assert_eq!(order(&place), "begun rich-poststop");
    place.finish();
}

/// Starts a command, waits until the hook says that it runs, and kills the command.
fn kill_in_hook(place: &Place, word: &str) {
    let mut command = place.command(&[word, &place.id]);
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = command.spawn().unwrap();
    wait_for(|| place.path("log/here").exists());
    kill(
        Pid::from_raw(command.id().try_into().unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    command.wait().unwrap();
    fs::remove_file(place.path("log/here")).unwrap();
}

#[test]
fn a_delete_that_is_killed_in_the_hook_is_finished_by_the_next_and_the_hook_ran_once() {
    let slow = "sh:echo rich-poststop >>/log/order; : >/log/here; sleep 1000";
    let place = place("true", &[PRESTART, ("poststop", slow)]);
    place.create().ok();
    let pid = place.state()["pid"].as_i64().unwrap();
    place.on("start").ok();
    place.wait_stopped(pid.try_into().unwrap());
    kill_in_hook(&place, "delete");
    place.on("delete").ok();
    assert_eq!(order(&place), "rich-prestart rich-poststop");
    place.finish();
}

#[test]
fn of_two_deletes_at_once_one_runs_the_hook_and_neither_ends_it() {
    let slow = "sh:echo begun >>/log/order; sleep 1; echo over >>/log/order";
    let place = place("true", &[PRESTART, ("poststop", slow)]);
    place.create().ok();
    let pid = place.state()["pid"].as_i64().unwrap();
    place.on("start").ok();
    place.wait_stopped(pid.try_into().unwrap());
    let delete = || {
        let mut command = place.command(&["delete", "--force", &place.id]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    for mut delete in [delete(), delete(), delete()] {
        assert!(delete.wait().unwrap().success());
    }
    assert_eq!(order(&place), "rich-prestart begun over");
    place.finish();
}

#[test]
fn a_start_that_is_killed_in_the_hook_leaves_what_delete_takes_away() {
    let slow = "sh:: >/log/here; sleep 1000";
    let place = place("true", &[("prestart", slow), POSTSTOP]);
    place.create().ok();
    kill_in_hook(&place, "start");
    place.run(&["delete", "--force", &place.id]).ok();
    assert_eq!(order(&place), "rich-poststop");
    place.finish();
}

#[test]
fn a_start_after_one_that_was_killed_in_the_hook_ends_that_hook_first() {
    let once = "sh:echo begun >>/log/order; [ -e /log/go ] || { : >/log/here; sleep 1000; }; \
                cat /proc/[0-9]*/comm | grep -c '^sleep' >>/log/order; true";
    let place = place("echo program >>/log/order", &[("prestart", once)]);
    place.create().ok();
    kill_in_hook(&place, "start");
    fs::write(place.path("log/go"), "").unwrap();
    place.on("start").ok();
    wait_for(|| order(&place).contains("program"));
    assert_eq!(order(&place), "begun begun 0 program");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn a_poststop_that_hangs_or_cannot_run_is_logged_and_stops_nothing() {
    for (command, why) in [
        ("sh:sleep 1000", "it still ran after 1s and was killed"),
        ("/no/such/hook", "/no/such/hook: no such file or directory"),
        ("sh:echo so >&2; exit 9", "exit status 9, it said"),
    ] {
        let place = place("true", &[("poststop", command), ("hook-timeout", "1")]);
        place.create().ok();
        let pid = place.state()["pid"].as_i64().unwrap();
        place.on("start").ok();
        place.wait_stopped(pid.try_into().unwrap());
        let said = place.on("delete");
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.err.contains("poststop hook failed"), "{said:?}");
        assert!(said.err.contains(why), "{said:?}");
        assert!(names(&place.root()).is_empty());
        place.finish();
    }
}
