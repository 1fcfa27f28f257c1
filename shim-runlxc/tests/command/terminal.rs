//! Terminals by console socket.

use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use serde_json::json;

use crate::harness::{Place, names, read_terminal, receive_terminal};

#[test]
fn init_gets_a_terminal_and_the_caller_its_master() {
    let mut place = Place::new("tty; stty size; echo to stderr >&2");
    place.config["process"]["terminal"] = json!(true);
    place.config["process"]["consoleSize"] = json!({"height": 17, "width": 42});
    place.save();
    let listener = place.console_listener();
    place.create_with_console(&place.path("console.sock")).ok();
    let master = receive_terminal(&listener);
    place.on("start").ok();
    let said = read_terminal(master);
    assert!(said.contains("/dev/pts/0\n17 42\nto stderr\n"), "{said}");
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn an_exec_gets_one_too() {
    let place = Place::new("sleep 100");
    place.create().ok();
    place.on("start").ok();
    let listener = place.console_listener();
    let socket = place.path("console.sock");
    let words = [
        "exec",
        "-t",
        "-d",
        "--console-socket",
        socket.to_str().unwrap(),
        &place.id,
        "tty",
    ];
    place.run(&words).ok();
    let said = read_terminal(receive_terminal(&listener));
    assert!(said.contains("/dev/pts/"), "{said}");
    // In the foreground, without a terminal of our own, its output is ours.
    let said = place.run(&["exec", "-t", &place.id, "sh", "-c", "tty; exit 5"]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.out.contains("/dev/pts/"), "{said:?}");
    assert!(!said.out.contains('\r'), "{said:?}");
    // Much of it, to its last line.
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); echo $i; done";
    let said = place.run(&["exec", "-t", &place.id, "sh", "-c", script]);
    let lines: Vec<_> = said.out.lines().collect();
    let ends = (lines.len(), lines.last());
    assert_eq!(ends, (20000, Some(&"20000")), "{}", said.err);
    place.run(&["delete", "--force", &place.id]).ok();
    place.finish();
}

#[test]
fn terminal_and_socket_must_fit() {
    let mut place = Place::new("true");
    place.save();
    let nowhere = Path::new("/nowhere");
    place
        .create_with_console(nowhere)
        .fails_with("cannot use console socket if runlxc will not detach or allocate tty");
    place.config["process"]["terminal"] = json!(true);
    place
        .create()
        .fails_with("cannot allocate tty if runlxc will detach without setting console socket");
    place
        .create_with_console(nowhere)
        .fails_with("connect to console socket /nowhere");
    place.finish();
}

#[test]
fn a_console_socket_that_is_none_is_refused_and_nothing_is_left() {
    let mut place = Place::new("true");
    place.config["process"]["terminal"] = json!(true);
    place.save();
    std::fs::write(place.path("file"), "").unwrap();
    let _datagrams = UnixDatagram::bind(place.path("datagrams")).unwrap();
    // Bound once, and nobody behind it any more.
    drop(UnixListener::bind(place.path("dead")).unwrap());
    for (name, why) in [
        ("file", "Connection refused"),
        ("", "Connection refused"),
        ("datagrams", "Protocol wrong type for socket"),
        ("dead", "Connection refused"),
        ("missing", "No such file or directory"),
        (&"x".repeat(120), "File name too long"),
    ] {
        let said = place.create_with_console(&place.path(name));
        assert!(said.err.contains(why), "{name}: {said:?}");
        said.fails_with("connect to console socket");
        assert_eq!(names(&place.root()), [""; 0], "{name}");
    }
    place.finish();
}

#[test]
fn a_listener_that_goes_away_leaves_no_container() {
    let mut place = Place::new("sleep 1000");
    place.config["process"]["terminal"] = json!(true);
    place.save();
    let listener = place.console_listener();
    let gone = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let said = place.create_with_console(&place.path("console.sock"));
    // A create that never came so far leaves it waiting.
    let _gone_already = UnixStream::connect(place.path("console.sock"));
    gone.join().unwrap();
    // What it was sent before it went is lost, which nobody can know.
    if said.code != 0 {
        said.fails_with("console.sock");
    }
    let _made = place.run(&["delete", "--force", &place.id]);
    place.finish();
}
