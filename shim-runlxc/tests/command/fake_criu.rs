//! A `criu` in a shell script, for what a real one cannot be made to do: it is slow, is killed, or
//! puts processes where they do not belong. Speaks the few messages of CRIU's socket that it needs.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::harness::{Place, write_script};
use crate::lifecycle::wait_for;

/// Answers the question for its version with 4.2; `$KIND` is any other request's.
const HEAD: &str = r#"#!/bin/sh
# A read takes one message and drops what does not fit.
ask() { dd bs=65536 count=1 <&3 2>/dev/null | od -An -tu1 -N2 | tr -s ' '; }
KIND=$(ask)
if [ "$KIND" = " 8 10" ]; then
    printf '\010\012\020\001\122\004\010\004\020\002' >&3
    exit
fi
"#;

/// What follows for a request that is no question for a version.
pub(crate) fn install(place: &Place, script: &str) -> PathBuf {
    let bin = place.path("fake");
    fs::create_dir(&bin).unwrap();
    write_script(&bin.join("criu"), &format!("{HEAD}{script}"));
    bin
}

/// The command, which finds the script before any other `criu`.
pub(crate) fn command(place: &Place, bin: &Path, words: &[&str]) -> Command {
    let mut command = place.command(words);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", bin.display()));
    command
}

/// Restores a process and its child, where `criu` itself is.
const RESTORE: &str = r#"
octal() { printf '\\%03o' "$1"; }
varint() {
    n=$1
    while [ "$n" -gt 127 ]; do octal $((n % 128 + 128)); n=$((n / 128)); done
    octal "$n"
}
# Four characters are a byte of the number.
notify() {
    body="\\012$(octal ${#1})$1\\020$PID"
    printf "\\010\\006\\020\\001\\052$(octal $((3 + ${#1} + ${#PID} / 4)))$body" >&3
    ask
}
mkfifo "$0.born"
sh -c "sleep 1000 & echo > $0.born; wait" &
PID=$(varint $!)
read -r _ < "$0.born"
notify setup-namespaces
notify post-restore
printf "\\010\\002\\020\\001\\042$(octal $((1 + ${#PID} / 4)))\\010$PID" >&3
"#;

#[test]
fn what_is_restored_outside_of_its_cgroups_is_moved_into_them() {
    let mut place = Place::new("sleep 100");
    place.config["linux"]["cgroupsPath"] = serde_json::json!(format!("/{}", place.id));
    place.save();
    let bin = install(&place, RESTORE);
    let images = place.path("images");
    fs::create_dir(&images).unwrap();
    let streams = r#"["/dev/null","/dev/null","/dev/null"]"#;
    fs::write(images.join("descriptors.json"), streams).unwrap();
    let images = images.to_str().unwrap();
    let words = ["restore", "-d", "--image-path", images, "-b"];
    let words = [&words[..], &[place.bundle_str(), &place.id]].concat();
    let log = fs::File::create(place.path("log")).unwrap();
    let mut command = command(&place, &bin, &words);
    command.stdout(std::process::Stdio::null()).stderr(log);
    let restored = command.status().unwrap();
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert!(restored.success(), "{log}");
    let told = log
        .matches("criu restored it outside of its cgroup")
        .count();
    assert_eq!(told, 2, "{log}");
    let pid = place.state()["pid"].to_string();
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = format!("/{}", place.id);
    assert!(
        cgroups.lines().all(|line| line.ends_with(&own)),
        "{cgroups}"
    );
    finish(place);
}

/// Freezes the container, says so, and when its socket closes thaws it and says so.
fn slow_dump(place: &Place, freezer: &Path) -> String {
    format!(
        "echo FROZEN > {freezer}; echo $$ > {at}/frozen; ask; \
         echo THAWED > {freezer}; : > {at}/undone\n",
        freezer = freezer.display(),
        at = place.path("").display(),
    )
}

/// The container's freezer of version 1; none on hosts without.
fn freezer(place: &Place) -> Option<PathBuf> {
    let path = Path::new("/sys/fs/cgroup/freezer").join(&place.id);
    let path = path.join("freezer.state");
    path.exists().then_some(path)
}

/// A container, and a checkpoint that has frozen it, in a process group of its own.
fn caught_in_a_dump() -> Option<(Place, Child)> {
    let mut place = Place::new("sleep 100");
    place.config["linux"]["cgroupsPath"] = serde_json::json!(format!("/{}", place.id));
    place.create().ok();
    place.on("start").ok();
    let Some(freezer) = freezer(&place) else {
        finish(place);
        return None;
    };
    let bin = install(&place, &slow_dump(&place, &freezer));
    let images = place.path("images");
    let words = [
        "checkpoint",
        "--image-path",
        images.to_str().unwrap(),
        &place.id,
    ];
    let child = command(&place, &bin, &words)
        .process_group(0)
        .spawn()
        .unwrap();
    wait_for(|| place.path("frozen").exists() && place.status() == "paused");
    Some((place, child))
}

fn finish(place: Place) {
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn a_checkpoint_that_is_ended_lets_the_container_go_on() {
    use nix::sys::signal::{Signal, kill, killpg};
    use nix::unistd::Pid;
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let Some((place, mut child)) = caught_in_a_dump() else {
            return;
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        match signal {
            // As a terminal does it.
            Signal::SIGINT => killpg(pid, signal).unwrap(),
            _ => kill(pid, signal).unwrap(),
        }
        child.wait().unwrap();
        wait_for(|| place.path("undone").exists());
        assert_eq!(place.status(), "running");
        finish(place);
    }
}
