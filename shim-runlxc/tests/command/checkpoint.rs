//! Into files and back, by a CRIU that works on this kernel; without one the refusal alone. A
//! guest that has both runs all of it (integration/tests/checkpoints.rs).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;

use crate::harness::{Place, Said, names, read_terminal, receive_terminal, write_script};
use crate::lifecycle::wait_for;

/// Counts in a variable, and shows it in a file.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done";

/// What `criu` of this host says to `check` with these words; none without one.
#[expect(clippy::disallowed_methods, reason = "asks the host")]
fn check(words: &[&str]) -> Option<bool> {
    let output = std::process::Command::new("criu")
        .arg("check")
        .args(words)
        .output();
    output.ok().map(|output| output.status.success())
}

/// Whether there is a CRIU that works. A guest that is there to have one insists.
fn works() -> bool {
    let works = check(&[]) == Some(true);
    let insists = std::env::var_os("POUCH_CRIU").is_some();
    assert!(works || !insists, "criu does not work: {:?}", check(&[]));
    works
}

fn counter() -> Place {
    let mut place = Place::new(COUNTER);
    place.config["linux"]["cgroupsPath"] = json!(format!("/{}", place.id));
    place
}

/// Runs the command with nothing but /dev/null for its standard streams, which a container keeps.
#[track_caller]
fn quietly(place: &Place, words: &[&str]) {
    let status = place
        .command(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{words:?}");
}

fn start(place: &Place) {
    place.save();
    quietly(
        place,
        &["run", "--detach", "-b", place.bundle_str(), &place.id],
    );
    wait_for(|| count(place) > 2);
}

/// Brings it back, with nothing but /dev/null for its standard streams.
#[track_caller]
fn bring_back(place: &Place, more: &[&str]) {
    let words = restore_words(place, &[&["--detach"], more].concat());
    quietly(place, &words.iter().map(String::as_str).collect::<Vec<_>>());
}

fn count(place: &Place) -> u64 {
    let text = fs::read_to_string(place.rootfs().join("count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn images(place: &Place) -> PathBuf {
    place.path("images")
}

fn checkpoint(place: &Place, more: &[&str]) -> Said {
    let images = images(place);
    let words = ["checkpoint", "--image-path", images.to_str().unwrap()];
    place.run(&[&words[..], more, &[&place.id]].concat())
}

fn restore(place: &Place, more: &[&str]) -> Said {
    place.run(
        &restore_words(place, more)
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    )
}

fn restore_words(place: &Place, more: &[&str]) -> Vec<String> {
    let images = images(place);
    let words = [
        "restore",
        "--image-path",
        images.to_str().unwrap(),
        "-b",
        place.bundle_str(),
    ];
    let words = [&words[..], more, &[&place.id]].concat();
    words.into_iter().map(str::to_owned).collect()
}

/// Runs on from where it was: neither stopped nor started anew.
fn goes_on(place: &Place, before: u64) {
    wait_for(|| count(place) > before);
    assert!(count(place) < before + 400, "{before}, {}", count(place));
}

fn finish(place: Place) {
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn without_a_criu_that_works_it_is_told_what_is_missing() {
    let place = Place::new("sleep 100");
    place.create().ok();
    place.on("start").ok();
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    write_script(
        &bin.join("criu"),
        "#!/bin/sh\necho 'Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds' >&2\nexit 1\n",
    );
    let mut command = place.command(&["checkpoint", &place.id]);
    let said = Said::of(&command.env("PATH", &bin).output().unwrap());
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(
        said.err,
        format!(
            "checkpoint and restore is not supported: {}/criu does not work on this kernel: vdso: \
             Unexpected rt vDSO area bounds\n",
            bin.display()
        )
    );
    if check(&[]).is_none() {
        let missing = "criu is not on the PATH: install criu";
        checkpoint(&place, &[]).fails_with(missing);
        place
            .run(&["restore", "-b", place.bundle_str(), "other"])
            .fails_with(missing);
    }
    assert_eq!(place.status(), "running");
    finish(place);
}

#[test]
fn a_container_goes_into_files_and_comes_back() {
    if !works() {
        return;
    }
    let mut place = counter();
    place.config["root"]["readonly"] = json!(false);
    place.config["hooks"] = json!({
        "createRuntime": [place.hook("createRuntime")],
        "poststop": [place.hook("poststop")],
    });
    start(&place);
    let cgroup = place
        .run(&["exec", &place.id, "cat", "/proc/1/cgroup"])
        .ok();
    assert_eq!(checkpoint(&place, &[]).ok(), "");
    place.on("state").fails_with("container does not exist");
    let before = count(&place);
    let pid_file = place.path("pid");
    bring_back(&place, &["--pid-file", pid_file.to_str().unwrap()]);
    assert_eq!(place.status(), "running");
    assert_eq!(
        place.state()["pid"].to_string(),
        fs::read_to_string(pid_file).unwrap()
    );
    goes_on(&place, before);
    // Its standard output is that of the restore now.
    wait_for(|| {
        fs::read_to_string(place.path("out"))
            .unwrap()
            .lines()
            .count()
            > 1
    });
    // In the same cgroups and namespaces as init, the one of time included.
    let exec = |script: &str| place.run(&["exec", &place.id, "sh", "-c", script]).ok();
    assert_eq!(exec("cat /proc/1/cgroup"), cgroup);
    assert_eq!(exec("cat /proc/self/cgroup"), cgroup);
    let links = |pid: &str| exec(&format!("cd /proc/{pid}/ns; for n in *; do ls -l $n; done"));
    let targets = |text: String| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.split_once(" -> "));
        lines.map(|(_, target)| target.to_owned()).collect()
    };
    assert_eq!(targets(links("self")), targets(links("1")));
    let words: Vec<_> = place.hooks().into_iter().map(|(word, _)| word).collect();
    assert_eq!(words, ["createRuntime", "poststop", "createRuntime"]);
    // Once more, from what was restored.
    checkpoint(&place, &[]).ok();
    let before = count(&place);
    bring_back(&place, &[]);
    goes_on(&place, before);
    finish(place);
}

#[test]
fn a_container_may_run_on_and_be_paused() {
    if !works() {
        return;
    }
    let place = counter();
    start(&place);
    place.on("pause").ok();
    checkpoint(&place, &["--leave-running"]).ok();
    assert_eq!(place.status(), "paused");
    let before = count(&place);
    place.on("resume").ok();
    goes_on(&place, before);
    checkpoint(&place, &["--leave-running"]).ok();
    goes_on(&place, count(&place));
    restore(&place, &["--detach"]).fails_with("container with given ID already exists");
    goes_on(&place, count(&place));
    finish(place);
}

#[test]
fn a_copy_comes_back_elsewhere() {
    if !works() {
        return;
    }
    // No file is open in the root: CRIU wants those as they were.
    let sleeper = || {
        let mut place = Place::new("echo ready > /count; exec sleep 1000");
        place.config["linux"]["cgroupsPath"] = json!(format!("/{}", place.id));
        place.save();
        place
    };
    let place = sleeper();
    quietly(&place, &["run", "-d", "-b", place.bundle_str(), &place.id]);
    let args = |place: &Place| {
        place
            .run(&["exec", &place.id, "cat", "/proc/1/cmdline"])
            .ok()
    };
    wait_for(|| args(&place).starts_with("sleep"));
    checkpoint(&place, &["--leave-running"]).ok();

    // Another id, cgroup and root file system, which has no folders for mounts yet.
    let other = sleeper();
    for folder in ["proc", "sys", "dev"] {
        fs::remove_dir(other.rootfs().join(folder)).unwrap();
    }
    fs::rename(images(&place), images(&other)).unwrap();
    bring_back(&other, &[]);
    assert!(
        !other.rootfs().join("count").exists(),
        "it was not started anew"
    );
    assert_eq!(args(&other), "sleep\u{0}1000\u{0}");
    let exec = |file: &str| other.run(&["exec", &other.id, "cat", file]).ok();
    let cgroup = exec("/proc/1/cgroup");
    assert!(
        cgroup.lines().all(|line| line.ends_with(&other.id)),
        "{cgroup}"
    );
    let mounts = exec("/proc/1/mountinfo");
    assert!(!mounts.contains(&place.id), "{mounts}");
    finish(other);
    assert_eq!(place.status(), "running");
    finish(place);
}

#[test]
fn pipes_and_exit_codes_are_those_of_the_restore() {
    if !works() {
        return;
    }
    let place = Place::new("trap 'exit 7' TERM; while :; do echo x; sleep 0.05; done");
    place.save();
    let mut child = place
        .command(&["run", "--detach", "-b", place.bundle_str(), &place.id])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "x");
    assert!(child.wait().unwrap().success());
    checkpoint(&place, &[]).ok();
    assert!(
        lines.all(|line| line.unwrap() == "x"),
        "the first pipe is closed"
    );

    let words = restore_words(&place, &[]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut child = place
        .command(&words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "x");
    place.on("kill").ok();
    assert!(lines.all(|line| line.unwrap() == "x"));
    assert_eq!(child.wait().unwrap().code(), Some(7));
    place.finish();
}

#[test]
fn a_file_outside_is_written_on() {
    if !works() {
        return;
    }
    let place = Place::new("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    place.save();
    let log = place.path("log");
    let numbers = || -> Vec<u64> {
        let text = fs::read_to_string(&log).unwrap();
        // The last line may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.parse().unwrap()).collect()
    };
    let append = || {
        fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap()
    };
    let with_log = |words: &[&str]| {
        let status = place
            .command(words)
            .stdout(append())
            .stderr(append())
            .status();
        assert!(status.unwrap().success(), "{words:?}");
    };
    with_log(&["run", "--detach", "-b", place.bundle_str(), &place.id]);
    wait_for(|| numbers().len() > 2);
    checkpoint(&place, &[]).ok();
    let before = numbers().len();
    let words = restore_words(&place, &["--detach"]);
    with_log(&words.iter().map(String::as_str).collect::<Vec<_>>());
    wait_for(|| numbers().len() > before + 2);
    // Nothing is lost, nothing is told twice.
    let numbers = numbers();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    finish(place);
}

#[test]
fn a_terminal_comes_back_by_the_console_socket() {
    if !works() {
        return;
    }
    let mut place = Place::new("while :; do sleep 0.05; tty && [ -e /end ] && exit; done");
    place.config["process"]["terminal"] = json!(true);
    place.save();
    let listener = place.console_listener();
    let socket = place.path("console.sock");
    place.create_with_console(&socket).ok();
    let first = receive_terminal(&listener);
    place.on("start").ok();
    checkpoint(&place, &[]).ok();
    drop(first);
    let socket = socket.to_str().unwrap();
    restore(&place, &["--detach", "--console-socket", socket]).ok();
    let second = receive_terminal(&listener);
    fs::write(place.rootfs().join("end"), "").unwrap();
    let said = read_terminal(second);
    assert!(
        said.contains("/dev/console") || said.contains("/dev/pts/0"),
        "{said}"
    );
    finish(place);
}

#[test]
fn memory_can_be_written_in_advance() {
    if !works() || check(&["--feature", "mem_dirty_track"]) != Some(true) {
        return;
    }
    let place = counter();
    start(&place);
    let early = place.path("early");
    place
        .run(&[
            "checkpoint",
            "--pre-dump",
            "--image-path",
            early.to_str().unwrap(),
            &place.id,
        ])
        .ok();
    assert_eq!(place.status(), "running");
    checkpoint(&place, &["--parent-path", "../nowhere"]).fails_with("invalid --parent-path");
    checkpoint(&place, &["--parent-path", "../early"]).ok();
    assert!(names(&images(&place)).contains(&"parent".to_owned()));
    let before = count(&place);
    bring_back(&place, &[]);
    goes_on(&place, before);
    finish(place);
}

#[test]
fn what_cannot_be_is_refused_and_undone() {
    if !works() {
        return;
    }
    let place = counter();
    place.create().ok();
    checkpoint(&place, &[]).fails_with("cannot checkpoint a container in the created state");
    place.run(&["delete", "--force", &place.id]).ok();
    start(&place);
    checkpoint(&place, &["--page-server", "nowhere"]).fails_with("--page-server ADDRESS:PORT");
    checkpoint(&place, &["--leave-running"]).ok();
    place.run(&["delete", "--force", &place.id]).ok();
    fs::remove_file(images(&place).join("inventory.img")).unwrap();
    let said = restore(&place, &["--detach"]);
    assert!(said.err.contains("criu failed: "), "{said:?}");
    assert!(said.err.contains("restore.log"), "{said:?}");
    place.on("state").fails_with("container does not exist");
    fs::remove_dir_all(images(&place)).unwrap();
    restore(&place, &["--detach"]).fails_with("descriptors.json");
    place.finish();
}
