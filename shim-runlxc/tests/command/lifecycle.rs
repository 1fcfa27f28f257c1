//! From create to delete, and what is seen on the way.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

use crate::harness::{Place, freezer};

#[test]
fn a_container_goes_through_its_life() {
    let place = Place::new("sleep 100");
    assert_eq!(place.create().ok(), "");
    let state = place.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], json!(place.id));
    assert_eq!(state["bundle"], json!(place.bundle_str()));
    let pid = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
    place.on("start").ok();
    assert_eq!(place.status(), "running");
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(exe.ends_with("bin/busybox"), "{}", exe.display());
    place.run(&["kill", &place.id, "KILL"]).ok();
    place.wait_stopped(pid);
    let state = place.state();
    assert_eq!(
        (&state["status"], &state["pid"]),
        (&json!("stopped"), &json!(0))
    );
    place.on("delete").ok();
    place.on("state").fails_with("container does not exist");
    place.finish();
}

#[test]
fn run_gives_output_and_exit_code() {
    for (script, code, out) in [
        ("exit 7", 7, ""),
        (
            "echo out; cat /proc/1/comm; hostname",
            0,
            "out\nsh\nrunlxc\n",
        ),
        ("kill -9 $$; true", 0, ""), // Pid 1 is deaf to its own signals.
    ] {
        let place = Place::new(script);
        let said = place.run_program();
        assert_eq!((said.code, said.out.as_str()), (code, out), "{said:?}");
        place.finish();
    }
}

#[test]
fn clocks_are_set_off_for_init_and_execs_and_by_path() {
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        return;
    }
    let mut place = Place::new("exec sleep 100");
    let namespaces = place.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "time"}));
    place.config["linux"]["timeOffsets"] = json!({
        "boottime": {"secs": 1_000_000, "nanosecs": 5},
        "monotonic": {"secs": 2_000_000},
    });
    place.create().ok();
    place.on("start").ok();
    let look = |place: &Place| {
        let words = [
            "exec",
            &place.id,
            "cat",
            "/proc/self/timens_offsets",
            "/proc/uptime",
        ];
        let said = place.run(&words).ok();
        said.split_ascii_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let check = |place: &Place| {
        let words = look(place);
        let offsets = ["monotonic", "2000000", "0", "boottime", "1000000", "5"];
        assert_eq!(words[..6], offsets);
        assert!(words[6].parse::<f64>().unwrap() > 1_000_000.0, "{words:?}");
    };
    check(&place);
    let mut other = Place::new("exec sleep 100");
    let path = format!("/proc/{}/ns/time", place.state()["pid"]);
    let namespaces = other.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "time", "path": path}));
    other.create().ok();
    other.on("start").ok();
    check(&other);
    for place in [place, other] {
        place.run(&["delete", "--force", &place.id]).ok();
        place.finish();
    }
}

#[test]
fn a_rootless_spec_runs() {
    let mut place = Place::new("true");
    let folder = place.path("spec");
    fs::create_dir(&folder).unwrap();
    place
        .run(&["spec", "--rootless", "-b", folder.to_str().unwrap()])
        .ok();
    let text = fs::read_to_string(folder.join("config.json")).unwrap();
    place.config = serde_json::from_str(&text).unwrap();
    place.config["process"]["terminal"] = json!(false);
    place.config["process"]["args"] = json!(["sh", "-c", "id -u; cat /proc/self/uid_map"]);
    let said = place.run_program().ok();
    let words: Vec<_> = said.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "1"], "{said}");
    place.finish();
}

#[test]
fn a_host_that_was_just_booted_is_enough() {
    let place = Place::new("echo here");
    place.save();
    let said = place.run_on_empty_run(&["run", "-b", place.bundle_str(), &place.id]);
    assert_eq!((said.code, said.out.as_str()), (0, "here\n"), "{said:?}");
    place.finish();
}

#[test]
fn a_signal_is_an_exit_code_and_reaches_the_program() {
    let place =
        Place::new("trap 'exit 3' TERM; echo ready > /tmp/ready; while :; do sleep 0.01; done");
    place.save();
    let mut child = place
        .command(&["run", "-b", place.bundle_str(), &place.id])
        .spawn()
        .unwrap();
    let ready = place.rootfs().join("tmp/ready");
    wait_for(|| ready.exists());
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    place.finish();
}

#[test]
fn a_killed_program_is_128_and_the_signal() {
    let place = Place::new("echo ready > /tmp/ready; while :; do sleep 1; done");
    place.save();
    let mut child = place
        .command(&["run", "-b", place.bundle_str(), &place.id])
        .spawn()
        .unwrap();
    let ready = place.rootfs().join("tmp/ready");
    wait_for(|| ready.exists());
    place.run(&["kill", &place.id, "9"]).ok();
    assert_eq!(child.wait().unwrap().code(), Some(137));
    place.finish();
}

/// What the build is of, as git says.
#[expect(clippy::disallowed_methods, reason = "git is no container process")]
fn commit() -> String {
    let told = std::env::var("POUCH_REVISION").unwrap_or_default();
    let output = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    match output {
        _ if !told.is_empty() => told,
        Ok(output) if output.status.success() => {
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

#[test]
fn list_features_spec_and_version_speak() {
    let place = Place::new("sleep 100");
    place.create().ok();
    assert_eq!(place.run(&["list", "-q"]).ok(), format!("{}\n", place.id));
    let listed: Value = serde_json::from_str(&place.run(&["list", "-f", "json"]).ok()).unwrap();
    assert_eq!(listed[0]["owner"], "root");
    let table = place.run(&["list"]).ok();
    assert!(
        table.starts_with("ID ") && table.contains(" created "),
        "{table}"
    );
    place.run(&["delete", &place.id, "--force"]).ok();
    assert_eq!(place.run(&["list", "-q"]).ok(), "");
    let features: Value = serde_json::from_str(&place.run(&["features"]).ok()).unwrap();
    let options = features["mountOptions"].as_array().unwrap();
    assert!(options.contains(&json!("rro")) && options.contains(&json!("bind")));
    assert_eq!(features["linux"]["seccomp"]["enabled"], json!(true));
    let help = place.run(&["state", "-h"]).ok();
    assert!(help.starts_with("NAME:\n   runlxc state - "), "{help}");
    place
        .run(&["foo", "-h"])
        .fails_with("No help topic for 'foo'");
    let version = place.run(&["--version"]).ok();
    let commit = format!("\ncommit: {}\n", commit());
    assert!(version.contains(&commit), "{commit} is not in {version}");
    let folder = place.path("spec");
    fs::create_dir(&folder).unwrap();
    place.run(&["spec", "-b", folder.to_str().unwrap()]).ok();
    place
        .run(&["spec", "-b", folder.to_str().unwrap()])
        .fails_with("File config.json exists. Remove it first");
    place.finish();
}

#[test]
fn pid_file_log_and_json_log_are_written() {
    let mut place = Place::new("true");
    place.config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_OF_TOMORROW"]);
    place.save();
    let (pid_file, log) = (place.path("pid"), place.path("log.json"));
    let said = place.run(&[
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "create",
        &place.id,
        "--bundle",
        place.bundle_str(),
        "--pid-file",
        pid_file.to_str().unwrap(),
    ]);
    said.ok();
    let pid = fs::read_to_string(pid_file).unwrap();
    assert_eq!(place.state()["pid"].to_string(), pid);
    place
        .run(&[
            "--log",
            log.to_str().unwrap(),
            "--log-format",
            "json",
            "start",
            "nobody",
        ])
        .fails_with("container does not exist");
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["level"], "warning", "{log}");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["level"], &last["msg"]),
        (&json!("error"), &json!("container does not exist"))
    );
    assert!(last["time"].as_str().unwrap().ends_with('Z'));
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn without_a_pid_namespace_what_init_leaves_is_killed() {
    let mut place = Place::new("sleep 100 & echo $! > /tmp/pid; exit 4");
    place.config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}]);
    place.config["hostname"] = Value::Null;
    // A mount of proc is the host's then.
    let said = place.run_program();
    assert_eq!(said.code, 4, "{said:?}");
    let left = fs::read_to_string(place.rootfs().join("tmp/pid")).unwrap();
    // Nothing, or one that nobody has waited for.
    let line = fs::read(format!("/proc/{}/cmdline", left.trim())).unwrap_or_default();
    assert_eq!(line, b"", "process {left}");
    place.finish();
}

#[test]
fn without_a_pid_namespace_what_init_left_can_be_killed() {
    let mut place = Place::new("exec sleep 100");
    place.config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}]);
    place.config["hostname"] = Value::Null;
    place.create().ok();
    place.on("start").ok();
    let left = place.path("left");
    let file = left.to_str().unwrap();
    place
        .run(&["exec", "-d", "--pid-file", file, &place.id, "sleep", "100"])
        .ok();
    let init = i32::try_from(place.state()["pid"].as_i64().unwrap()).unwrap();
    sys::process::kill_number(sys::Pid::from_raw(init), sys::Signal::SIGKILL as i32).unwrap();
    place.wait_stopped(init);
    place.run(&["kill", &place.id, "KILL"]).ok();
    let left = fs::read_to_string(left).unwrap();
    place.wait_stopped(left.trim().parse().unwrap());
    place.on("kill").fails_with("container not running");
    place.on("delete").ok();
    place.finish();
}

#[test]
fn a_user_namespace_maps_its_root() {
    let mut place = Place::new("id -u; cat /proc/self/uid_map; echo x > /tmp/made");
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    place.config["linux"]["uidMappings"] = maps.clone();
    place.config["linux"]["gidMappings"] = maps;
    let namespaces = place.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let tmp = place.rootfs().join("tmp");
    std::os::unix::fs::chown(&tmp, Some(100_000), Some(100_000)).unwrap();
    let said = place.run_program();
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.out.starts_with("0\n") && said.out.contains("100000"),
        "{said:?}"
    );
    let made = std::os::unix::fs::MetadataExt::uid(&fs::metadata(tmp.join("made")).unwrap());
    assert_eq!(made, 100_000);
    place.finish();
}

/// A folder with a file of owner 5, in one that is closed to all but root.
fn closed_folder(place: &Place) -> PathBuf {
    let folder = place.path("closed/open");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("file"), "text\n").unwrap();
    std::os::unix::fs::chown(folder.join("file"), Some(5), Some(5)).unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(place.path("closed"), closed).unwrap();
    folder
}

#[test]
fn owners_of_mounts_are_mapped_with_a_user_namespace_and_without() {
    let mut place =
        Place::new("stat -c %u:%g /mapped/file; cat /plain/file; stat -c %u /implied/file");
    let folder = closed_folder(&place);
    let ids = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1000}]);
    let bind = |to: &str, options: &[&str]| json!({"destination": to, "source": folder, "options": options});
    let mut mapped = bind("/mapped", &["bind", "ro"]);
    mapped["uidMappings"] = ids(200_000);
    mapped["gidMappings"] = ids(200_000);
    let mounts = place.config["mounts"].as_array_mut().unwrap();
    mounts.extend([
        mapped,
        bind("/plain", &["bind"]),
        bind("/implied", &["bind"]),
    ]);
    assert_eq!(place.run_program().ok(), "200005:200005\ntext\n5\n");

    place.config["linux"]["uidMappings"] = ids(199_000);
    place.config["linux"]["gidMappings"] = ids(199_000);
    for (key, size) in [("uidMappings", 10_000), ("gidMappings", 10_000)] {
        place.config["linux"][key][0]["size"] = json!(size);
    }
    let namespaces = place.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let mounts = place.config["mounts"].as_array_mut().unwrap();
    mounts.last_mut().unwrap()["options"] = json!(["bind", "idmap"]);
    assert_eq!(place.run_program().ok(), "1005:1005\ntext\n5\n");
    place.finish();
}

/// A listener whose last descriptor is closed answers ENOSYS (seccomp_unotify(2)).
#[test]
fn a_seccomp_agent_gets_the_listeners_of_init_and_execs() {
    let mut place = Place::new("mkdir /tmp/x; exec sleep 100");
    let socket = place.path("agent");
    place.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "m",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    place
        .create()
        .fails_with("failed to connect with seccomp agent");

    let agent = UnixListener::bind(&socket).unwrap();
    let told = || {
        let mut asked = [PollFd::new(agent.as_fd(), PollFlags::POLLIN)];
        assert_ne!(
            poll(&mut asked, 30_000_u16).unwrap(),
            0,
            "no listener comes"
        );
        let (stream, _) = agent.accept().unwrap();
        let mut text = [0; 4096];
        let (count, fds, _) = sys::recv_with_fds(&stream, &mut text).unwrap();
        assert_eq!(fds.len(), 1);
        serde_json::from_slice::<Value>(&text[..count]).unwrap()
    };
    place.create().ok();
    let about = told();
    place.on("start").ok();
    assert_eq!(
        (&about["fds"], &about["metadata"]),
        (&json!(["seccompFd"]), &json!("m"))
    );
    assert_eq!(
        (&about["pid"], &about["state"]["pid"]),
        (&place.state()["pid"], &about["pid"])
    );
    assert_eq!(
        (&about["state"]["id"], &about["state"]["status"]),
        (&json!(place.id), &json!("creating"))
    );
    let said = std::thread::scope(|scope| {
        let agent = scope.spawn(told);
        let said = place.run(&["exec", &place.id, "busybox", "mkdir", "/tmp/y"]);
        assert_ne!(agent.join().unwrap()["pid"], about["pid"]);
        said
    });
    assert!(said.err.contains("Function not implemented"), "{said:?}");
    assert!(!place.rootfs().join("tmp/y").exists());
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

/// Callers look for the level (youki's contest) and for runc's words.
#[test]
fn a_failure_is_a_line_of_the_log_on_standard_error() {
    let place = Place::new("true");
    #[expect(
        clippy::disallowed_methods,
        reason = "the harness takes the line apart"
    )]
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_runlxc"))
        .arg("--root")
        .arg(place.root())
        .args(["state", "nobody"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("time=\""), "{said}");
    let told = " level=error msg=\"container does not exist";
    assert!(said.contains(told), "{said}");
    place.finish();
}

/// Of three descriptors one is open.
#[test]
fn descriptors_are_passed_on_when_asked() {
    let place = Place::new("cat <&3; ! true <&4");
    place.save();
    let file = place.path("passed");
    fs::write(&file, "through\n").unwrap();
    let line = format!(
        "exec 3< {}; exec {} --root {} run --preserve-fds 3 -b {} {} 4<&- 5<&-",
        file.display(),
        env!("CARGO_BIN_EXE_runlxc"),
        place.root().display(),
        place.bundle().display(),
        place.id
    );
    #[expect(clippy::disallowed_methods, reason = "a shell opens descriptor 3")]
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &line])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "through\n",
        "{output:?}"
    );
    place.finish();
}

#[test]
fn a_cgroup_in_use_is_neither_shared_nor_harmed() {
    let mut first = Place::new("sleep 100");
    let path = format!("/{}/both", first.id);
    first.config["linux"]["cgroupsPath"] = json!(path);
    first.create().ok();
    first.on("start").ok();
    let mut second = Place::new("true");
    second.config["linux"]["cgroupsPath"] = json!(path);
    second.create().fails_with("/both");
    assert_eq!(first.status(), "running");
    second.finish();
    first.run(&["delete", "--force", &first.id]).ok();
    first.finish();
}

#[test]
fn a_frozen_container_can_be_deleted() {
    let mut place = Place::new("sleep 100");
    place.config["linux"]["cgroupsPath"] = json!(format!("/{}", place.id));
    place.create().ok();
    place.on("start").ok();
    let (file, frozen) = freezer(&place.id);
    fs::write(file, frozen).unwrap();
    assert_eq!(place.status(), "paused");
    place
        .run(&["exec", &place.id, "true"])
        .fails_with("cannot exec in a paused container");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn shared_mounts_reach_the_host() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    const NONE: Option<&str> = None;
    let mut place = Place::new("mount -t tmpfs sub /shared/sub");
    let shared = place.path("shared");
    fs::create_dir(&shared).unwrap();
    mount(
        Some("shared"),
        &shared,
        Some("tmpfs"),
        MsFlags::empty(),
        NONE,
    )
    .unwrap();
    mount(NONE, &shared, NONE, MsFlags::MS_SHARED, NONE).unwrap();
    fs::create_dir(shared.join("sub")).unwrap();
    let bind = json!({"destination": "/shared", "source": shared, "type": "bind", "options": ["rbind", "rshared"]});
    place.config["mounts"].as_array_mut().unwrap().push(bind);
    place.config["linux"]["rootfsPropagation"] = json!("rshared");
    for set in ["bounding", "effective", "permitted"] {
        place.config["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push(json!("CAP_SYS_ADMIN"));
    }
    let said = place.run_program();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let seen = mounts.contains(shared.join("sub").to_str().unwrap());
    // Without the second one the first is busy.
    let _none = umount2(&shared.join("sub"), MntFlags::MNT_DETACH);
    umount2(&shared, MntFlags::MNT_DETACH).unwrap();
    assert!(seen && said.code == 0, "{said:?}");
    let still_shared =
        |line: &str| line.contains(shared.to_str().unwrap()) && line.contains(" shared:");
    assert!(
        mounts.lines().any(still_shared),
        "LXC must not touch the host's mounts: {mounts}"
    );
    place.finish();
}

/// Looks until it is so, at most 20 s.
#[track_caller]
pub(crate) fn wait_for(so: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !so() {
        assert!(start.elapsed().as_secs() < 20, "it does not happen");
        poll(&mut [], 5_u8).unwrap();
    }
}
