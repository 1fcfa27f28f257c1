//! kill -9 of anything at any point; afterwards `delete --force` leaves nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Place, write_script};
use crate::lifecycle::wait_for;

/// A hook that makes the file `here` and then waits.
fn waits(place: &Place) -> serde_json::Value {
    let script = format!(
        "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
        place.path("here").display()
    );
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
}

fn start_create(place: &Place, path: Option<&Path>) -> Child {
    place.save();
    let mut command = place.command(&["create", "-b", place.bundle_str(), &place.id]);
    if let Some(path) = path {
        command.env("PATH", format!("{}:/usr/bin:/bin", path.display()));
    }
    command
        .stdout(Stdio::null())
        .stderr(fs::File::create(place.path("err")).unwrap());
    command.spawn().unwrap()
}

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn pid_of(child: &Child) -> i32 {
    child.id().try_into().unwrap()
}

/// The number a script left in a file, once it is there.
fn pid_in(place: &Place, name: &str) -> i32 {
    let file = place.path(name);
    wait_for(|| file.exists());
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

#[test]
fn the_command_dies_in_a_hook_of_the_host() {
    let mut place = Place::new("true");
    place.config["hooks"] = json!({"createRuntime": [waits(&place)]});
    let mut command = start_create(&place, None);
    pid_in(&place, "here");
    assert_eq!(place.status(), "creating");
    place
        .on("delete")
        .fails_with("that is not stopped: creating");
    kill_9(pid_of(&command));
    command.wait().unwrap();
    assert_eq!(place.status(), "stopped");
    end_sleeper(&place);
    place.on("delete").ok();
    place.finish();
}

#[test]
fn a_create_that_was_deleted_does_not_undo_the_next_of_its_name() {
    let mut place = Place::new("sleep 1000");
    place.config["hooks"] = json!({"createRuntime": [waits(&place)]});
    let mut first = start_create(&place, None);
    let hook = pid_in(&place, "here");
    place.run(&["delete", "--force", &place.id]).ok();
    place.config["hooks"] = json!({});
    place.save();
    place.create().ok();
    place.on("start").ok();
    kill_9(hook);
    assert_eq!(first.wait().unwrap().code(), Some(1));
    assert_eq!(place.status(), "running");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn the_command_dies_while_the_stub_works() {
    let mut place = Place::new("true");
    place.config["hooks"] = json!({"createContainer": [waits(&place)]});
    let mut command = start_create(&place, None);
    pid_in(&place, "here");
    kill_9(pid_of(&command));
    command.wait().unwrap();
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn the_stub_dies_while_it_works() {
    let mut place = Place::new("true");
    place.config["hooks"] = json!({"createContainer": [waits(&place)]});
    let mut command = start_create(&place, None);
    wait_for(|| place.path("here").exists());
    let pid = place.state()["pid"].as_i64().unwrap();
    kill_9(i32::try_from(pid).unwrap());
    assert_eq!(command.wait().unwrap().code(), Some(1));
    let said = fs::read_to_string(place.path("err")).unwrap();
    assert!(said.contains("ended unexpectedly"), "{said}");
    place.finish();
}

#[test]
fn lxc_start_dies_before_there_is_a_container() {
    let place = Place::new("true");
    let folder = fake_lxc(&place, "kill -9 $$");
    let mut command = start_create(&place, Some(&folder));
    assert_eq!(command.wait().unwrap().code(), Some(1));
    let said = fs::read_to_string(place.path("err")).unwrap();
    assert!(said.contains("lxc-start failed"), "{said}");
    place.finish();
}

#[test]
fn the_command_dies_while_lxc_start_works() {
    let place = Place::new("true");
    let folder = fake_lxc(
        &place,
        &format!(
            "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
            place.path("lxc").display()
        ),
    );
    let mut command = start_create(&place, Some(&folder));
    let lxc = pid_in(&place, "lxc");
    kill_9(pid_of(&command));
    command.wait().unwrap();
    wait_for(|| {
        !Path::new(&format!("/proc/{lxc}/cmdline")).exists()
            || fs::read(format!("/proc/{lxc}/cmdline")).is_ok_and(|line| line.is_empty())
    });
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn what_a_dead_lxc_start_leaves_is_found() {
    let place = Place::new("true");
    let fifo = place.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A subshell has the command line of its parent, as LXC's child before it becomes the stub.
    let script = format!(
        "( read x < {} ) & echo $! > {1}.new; mv {1}.new {1}; wait",
        fifo.display(),
        place.path("stray").display()
    );
    let folder = fake_lxc(&place, &script);
    let mut command = start_create(&place, Some(&folder));
    let stray = pid_in(&place, "stray");
    kill_9(pid_of(&command));
    command.wait().unwrap();
    assert!(Path::new(&format!("/proc/{stray}")).exists());
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn init_and_its_monitor_are_gone_from_outside() {
    let place = Place::new("sleep 100");
    place.create().ok();
    let pid = i32::try_from(place.state()["pid"].as_i64().unwrap()).unwrap();
    kill_9(pid);
    place.wait_stopped(pid);
    assert_eq!(place.status(), "stopped");
    place
        .on("start")
        .fails_with("cannot start a container that has stopped");
    place.on("delete").ok();
    place.finish();
}

#[test]
fn a_start_that_died_after_the_program_ran_is_seen() {
    let place = Place::new("sleep 100");
    place.create().ok();
    let socket = place.root().join(&place.id).join("start.sock");
    place.on("start").ok();
    assert!(!socket.exists());
    // As if the command had died between execve and the removal of the socket.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert_eq!(place.status(), "created");
    place
        .on("start")
        .fails_with("cannot start an already running container");
    assert_eq!(place.status(), "running");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn a_directory_without_a_journal_is_taken_away() {
    let place = Place::new("true");
    fs::create_dir_all(place.root().join(&place.id)).unwrap();
    place.on("state").fails_with("container does not exist");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

/// A folder with an `lxc-start` that tells a version and otherwise runs this script.
fn fake_lxc(place: &Place, script: &str) -> std::path::PathBuf {
    let folder = place.path("fake");
    fs::create_dir(&folder).unwrap();
    let text = format!(
        "#!/bin/sh\nPATH=/bin:/usr/bin\n[ \"$1\" = --version ] && {{ echo 5.0.2; exit; }}\n{script}\n"
    );
    write_script(&folder.join("lxc-start"), &text);
    folder
}

/// A host's hook of a killed command is nobody's.
fn end_sleeper(place: &Place) {
    kill_9(pid_in(place, "here"));
}
