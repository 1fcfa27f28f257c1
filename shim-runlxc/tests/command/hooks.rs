//! Hooks at their points, and what their failures mean (runtime-spec runtime.md, Lifecycle).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::Place;

fn with_all_hooks() -> Place {
    let mut place = Place::new("sleep 100");
    let inside = |word: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo {word} $(cat) >> /hooks")]});
    place.config["hooks"] = json!({
        "prestart": [place.hook("prestart")],
        "createRuntime": [place.hook("createRuntime1"), place.hook("createRuntime2")],
        "createContainer": [place.hook("createContainer")],
        "startContainer": [inside("startContainer")],
        "poststart": [place.hook("poststart")],
        "poststop": [place.hook("poststop")],
    });
    place
}

fn words(place: &Place) -> Vec<String> {
    place
        .hooks()
        .into_iter()
        .map(|(word, status)| format!("{word} {status}"))
        .collect()
}

const CREATED: [&str; 4] = [
    "prestart creating",
    "createRuntime1 creating",
    "createRuntime2 creating",
    "createContainer creating",
];

#[test]
fn hooks_run_in_order_with_the_state_of_their_moment() {
    let place = with_all_hooks();
    place.create().ok();
    assert_eq!(words(&place), CREATED);
    place.on("start").ok();
    let mut expected = CREATED.to_vec();
    expected.push("poststart running");
    assert_eq!(words(&place), expected);
    let inside = std::fs::read_to_string(place.rootfs().join("hooks")).unwrap();
    assert!(
        inside.starts_with("startContainer {") && inside.contains("\"created\""),
        "{inside}"
    );
    place.run(&["delete", "--force", &place.id]).ok();
    expected.push("poststop stopped");
    assert_eq!(words(&place), expected);
    place.finish();
}

/// The hook ends only when the start waits for the lock of whoever creates.
#[test]
fn a_start_waits_for_the_create_that_is_at_work() {
    let mut place = Place::new("sleep 100");
    let (entered, go) = (place.path("entered"), place.path("go"));
    for fifo in [&entered, &go] {
        nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let line = format!("echo > {}; read x < {}", entered.display(), go.display());
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", line]});
    place.config["hooks"] = json!({"createRuntime": [hook]});
    std::thread::scope(|scope| {
        let create = scope.spawn(|| place.create());
        std::fs::read(&entered).unwrap();
        let start = scope.spawn(|| place.on("start"));
        wait_for_waiter(&place.root().join(&place.id));
        std::fs::write(&go, "\n").unwrap();
        create.join().unwrap().ok();
        start.join().unwrap().ok();
    });
    assert_eq!(place.status(), "running");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

/// Until somebody waits for the lock of this directory, as proc(5) lists it.
fn wait_for_waiter(path: &Path) {
    let inode = format!(":{} ", std::fs::metadata(path).unwrap().ino());
    let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
    let begun = Instant::now();
    let locks = || std::fs::read_to_string("/proc/locks").unwrap();
    while !locks().lines().any(waits) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody waits");
        std::thread::yield_now();
    }
}

/// As hooks for GPUs do it: in the mount namespace of the state's pid, below the root on the host.
#[test]
fn what_a_create_runtime_hook_mounts_the_container_has() {
    let mut place = Place::new("cat /dev/shm/added /etc/added");
    let source = place.path("added");
    std::fs::write(&source, "added\n").unwrap();
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); for to in dev/shm etc; do \
         nsenter -m -t $pid sh -c \"touch {root}/$to/added && mount --bind {source} {root}/$to/added\"; done",
        root = place.rootfs().display(),
        source = source.display(),
    );
    for stage in ["prestart", "createRuntime"] {
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-ec", script], "env": ["PATH=/bin:/usr/bin"]});
        place.config["hooks"] = json!({stage: [hook]});
        assert_eq!(place.run_program().ok(), "added\nadded\n", "{stage}");
    }
    place.finish();
}

#[test]
fn a_failed_hook_of_create_undoes_it_and_poststop_runs() {
    for point in ["prestart", "createRuntime", "createContainer"] {
        let mut place = with_all_hooks();
        place.config["hooks"][point] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"]}]);
        let said = place.create();
        said.fails_with("no luck");
        assert!(
            words(&place).contains(&"poststop stopped".to_owned()),
            "{point}"
        );
        place.finish();
    }
}

#[test]
fn a_failed_start_container_hook_fails_the_start() {
    let mut place = with_all_hooks();
    place.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]);
    place.create().ok();
    place.on("start").fails_with("startContainer hook");
    assert_eq!(place.status(), "stopped");
    place.on("delete").ok();
    place.finish();
}

#[test]
fn a_failed_poststart_hook_kills_the_container() {
    let mut place = with_all_hooks();
    place.config["hooks"]["poststart"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]);
    place.create().ok();
    let pid = i32::try_from(place.state()["pid"].as_i64().unwrap()).unwrap();
    place.on("start").fails_with("poststart hook");
    place.wait_stopped(pid);
    assert_eq!(place.status(), "stopped");
    place.on("delete").ok();
    place.finish();
}

#[test]
fn a_failed_poststop_hook_stops_nothing() {
    let mut place = with_all_hooks();
    let fails = json!({"path": "/bin/false"});
    place.config["hooks"]["poststop"] = json!([fails, place.hook("after")]);
    place.create().ok();
    place.run(&["delete", "--force", &place.id]).ok();
    assert_eq!(words(&place).last().unwrap(), "after stopped");
    place.finish();
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let mut place = Place::new("true");
    place.config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]});
    place.create().fails_with("timeout");
    place.finish();
}
