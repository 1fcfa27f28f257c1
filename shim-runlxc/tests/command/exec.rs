//! Further processes in a container.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::Place;
use crate::lifecycle::wait_for;

fn running() -> Place {
    let place = Place::new("sleep 100");
    place.create().ok();
    place.on("start").ok();
    place
}

fn finish(place: Place) {
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn an_exec_is_in_the_container_and_gives_its_code() {
    let place = running();
    let said = place.run(&[
        "exec",
        &place.id,
        "sh",
        "-c",
        "hostname; echo err >&2; exit 9",
    ]);
    assert_eq!(
        (said.code, said.out.as_str(), said.err.as_str()),
        (9, "runlxc\n", "err\n")
    );
    let said = place.run(&["exec", &place.id, "sh", "-c", "kill -9 $$"]);
    assert_eq!(said.code, 137);
    // Same cgroup, same namespaces, no capability that init has not.
    let inside = place
        .run(&["exec", &place.id, "cat", "/proc/self/cgroup"])
        .ok();
    let init = place
        .run(&["exec", &place.id, "cat", "/proc/1/cgroup"])
        .ok();
    assert_eq!(inside, init);
    let capabilities = |file: &str| place.run(&["exec", &place.id, "grep", "Cap", file]).ok();
    assert_eq!(
        capabilities("/proc/self/status"),
        capabilities("/proc/1/status")
    );
    finish(place);
}

#[test]
fn options_change_the_process() {
    let place = running();
    let said = place.run(&[
        "exec",
        "--cwd",
        "/tmp",
        "-e",
        "A=b",
        "-u",
        "5:6",
        "-g",
        "7",
        &place.id,
        "sh",
        "-c",
        "pwd; echo $A; id",
    ]);
    let out = said.ok();
    assert!(out.starts_with("/tmp\nb\nuid=5 gid=6"), "{out}");
    assert!(out.contains('7'), "{out}");
    let process = place.path("process.json");
    let text = json!({"args": ["sh", "-c", "pwd; id -u"], "cwd": "/etc", "env": ["PATH=/bin"], "user": {"uid": 3, "gid": 3}});
    fs::write(&process, text.to_string()).unwrap();
    assert_eq!(
        place
            .run(&["exec", "--process", process.to_str().unwrap(), &place.id])
            .ok(),
        "/etc\n3\n"
    );
    finish(place);
}

#[test]
fn an_exec_that_finds_no_memory_is_told_so() {
    const LIMIT: u64 = 24 << 20;
    const LEFT: u64 = 4 << 20;
    // The process that joins has the whole of it in memory before anything of the program's.
    const ENVIRONMENT: usize = 7 << 20;
    let mut place = Place::new("cat /dev/zero > /tmp/x; : > /up/full; exec sleep 100");
    place.config["linux"]["resources"] = json!({"memory": {"limit": LIMIT, "swap": LIMIT}});
    let up = place.path("up");
    fs::create_dir(&up).unwrap();
    let mounts = place.config["mounts"].as_array_mut().unwrap();
    let options = json!([format!("size={}", LIMIT - LEFT)]);
    mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "options": options}));
    mounts.push(json!({"destination": "/up", "type": "bind", "source": up, "options": ["bind"]}));
    place.create().ok();
    place.on("start").ok();
    wait_for(|| up.join("full").exists());
    let process = place.path("process.json");
    let large = format!("A={}", "x".repeat(ENVIRONMENT));
    let text = json!({"args": ["true"], "cwd": "/", "env": [large], "user": {"uid": 0, "gid": 0}});
    fs::write(&process, text.to_string()).unwrap();
    place
        .run(&["exec", "--process", process.to_str().unwrap(), &place.id])
        .fails_with(
            "the process that joins the container was killed for want of memory: the memory \
             limit of",
        );
    assert_eq!(place.status(), "running");
    finish(place);
}

#[test]
fn a_detached_exec_runs_on() {
    let place = running();
    let file = place.path("pid");
    place
        .run(&[
            "exec",
            "-d",
            "--pid-file",
            file.to_str().unwrap(),
            &place.id,
            "sleep",
            "50",
        ])
        .ok();
    let pid = fs::read_to_string(file).unwrap();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, "sleep\u{0}50\u{0}");
    finish(place);
}

#[test]
fn what_cannot_run_is_refused_in_one_line() {
    let place = running();
    place
        .run(&["exec", &place.id, "/bin/nothing"])
        .fails_with("/bin/nothing");
    place
        .run(&["exec", "--cwd", "/bin/sh", &place.id, "true"])
        .fails_with("/bin/sh");
    place
        .run(&["exec", &place.id])
        .fails_with("exec args cannot be empty");
    place
        .run(&["exec", "-u", "x", &place.id, "true"])
        .fails_with("--user");
    place
        .run(&["exec", "--console-socket", "/x", &place.id, "true"])
        .fails_with("console socket");
    assert_eq!(place.run(&["exec", &place.id, "/bin/nothing"]).code, 255);
    place.run(&["kill", &place.id, "KILL"]).ok();
    let pid = place.state()["pid"].as_i64().unwrap();
    place.wait_stopped(i32::try_from(pid).unwrap());
    place
        .run(&["exec", &place.id, "true"])
        .fails_with("cannot exec in a stopped container");
    finish(place);
}

#[test]
fn an_exec_has_the_filter_of_its_container() {
    let mut place = Place::new("sleep 100");
    place.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    place.create().ok();
    place.on("start").ok();
    let said = place.run(&[
        "exec",
        &place.id,
        "sh",
        "-c",
        "grep Seccomp: /proc/self/status; busybox mkdir /tmp/x",
    ]);
    assert!(said.out.contains("Seccomp:\t2"), "{said:?}");
    assert!(said.err.contains("not supported"), "{said:?}");
    finish(place);
}

#[test]
fn the_stub_cannot_be_written_from_inside() {
    let place = Place::new("true");
    place.create().ok();
    // It is pid 1 until the start. That it runs forbids writing, too, but only as long.
    let script = "cat /proc/1/comm; echo x > /proc/1/exe";
    let words = ["--cap", "CAP_SYS_PTRACE", &place.id, "sh", "-c", script];
    let said = place.run(&[&["exec"], &words[..]].concat());
    assert_eq!(said.out, "runlxc-init\n", "{said:?}");
    assert!(said.err.contains("Read-only file system"), "{said:?}");
    finish(place);
}

/// Makes a cgroup below the container's own in every hierarchy; gives its directories.
fn make_below(place: &Place, name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let dirs = hierarchies.filter_map(|line| {
        let mount_point = line.split(' ').nth(4)?;
        let own = Path::new(mount_point).join(&place.id);
        own.exists().then(|| own.join(name))
    });
    let dirs: Vec<_> = dirs.collect();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    dirs
}

#[test]
fn an_exec_goes_into_a_cgroup_below() {
    let mut place = Place::new("sleep 100");
    place.config["linux"]["cgroupsPath"] = json!(format!("/{}", place.id));
    place.create().ok();
    place.on("start").ok();
    let exec = |cgroup: &str| {
        let words = ["exec", "--cgroup", cgroup, &place.id];
        place.run(&[&words[..], &["cat", "/proc/self/cgroup"]].concat())
    };
    exec("below").fails_with("below");
    assert!(!make_below(&place, "below").is_empty());
    // Version 1 wants the processors of a cpuset named; it inherits none.
    let own = exec("/").ok();
    let is_version_2 = own.lines().count() == 1;
    if is_version_2 {
        let inside = exec("below").ok();
        assert!(
            inside.ends_with(&format!("/{}/below\n", place.id)),
            "{inside}"
        );
    } else {
        let inside = exec("pids:below").ok();
        let moved: Vec<_> = inside
            .lines()
            .filter(|line| line.ends_with("/below"))
            .collect();
        assert!(
            matches!(moved[..], [line] if line.contains(":pids:")),
            "{inside}"
        );
        exec("nothing:below").fails_with("unknown controller nothing");
    }
    finish(place);
}

#[test]
fn a_pidfd_comes_by_its_socket() {
    use std::os::fd::AsRawFd;
    let place = Place::new("sleep 100");
    place.save();
    let listener = place.console_listener();
    let socket = place.path("console.sock");
    let socket = socket.to_str().unwrap();
    let pid_of = |pidfd: std::os::fd::OwnedFd| {
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        let line = about.lines().find_map(|line| line.strip_prefix("Pid:"));
        line.unwrap().trim().to_owned()
    };
    place
        .run(&[
            "create",
            "-b",
            place.bundle_str(),
            "--pidfd-socket",
            socket,
            &place.id,
        ])
        .ok();
    let init = pid_of(crate::harness::receive_terminal(&listener));
    assert_eq!(place.state()["pid"].to_string(), init);
    place.on("start").ok();
    let file = place.path("pid");
    let words = [
        "exec",
        "-d",
        "--pid-file",
        file.to_str().unwrap(),
        "--pidfd-socket",
        socket,
    ];
    place
        .run(&[&words[..], &[&place.id, "sleep", "50"]].concat())
        .ok();
    let exec = pid_of(crate::harness::receive_terminal(&listener));
    assert_eq!(fs::read_to_string(file).unwrap(), exec);
    finish(place);
}
