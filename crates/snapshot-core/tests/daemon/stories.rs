//! What a daemon does from its start to its end.

use std::{
    fs::File,
    io::Read,
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    time::Instant,
};

use nix::{libc, sys::stat::Mode, unistd::mkfifo};
use sys::{ExitStatus, Signal};
use tonic::Code;

use crate::process::{Options, PATIENCE, Place};

macro_rules! tests {
    ($($test:ident,)*) => { &[$((stringify!($test), $test),)*] };
}

pub(crate) const TESTS: &[(&str, fn())] = tests![
    it_serves_until_it_is_asked_to_end_and_leaves_nothing,
    what_has_begun_is_finished_and_nothing_new_begins,
    what_does_not_end_in_time_is_given_up,
    a_second_signal_ends_it_at_once,
    a_client_that_hangs_without_a_request_does_not_hold_the_end,
    a_second_daemon_is_refused_and_the_successor_of_a_killed_one_is_not,
    a_socket_of_the_service_manager_is_served_and_stays,
    configuration_is_read_again_on_a_signal,
    a_reload_that_lasts_keeps_nobody_waiting,
    the_watchdog_hears_from_it_until_it_ends,
    requests_beyond_the_bound_wait_for_a_place,
    a_request_does_not_wait_for_a_place_for_ever,
    requests_that_are_never_whole_hold_no_place,
    connections_beyond_the_bound_are_refused_until_others_go,
    connections_on_which_nobody_asks_give_their_places_back,
    metrics_count_what_was_asked_and_unknown_names_are_one,
];

const DONE: ExitStatus = ExitStatus::Exited(0);

fn it_serves_until_it_is_asked_to_end_and_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let place = Place::new();
        let mut daemon = place.start(Options::default());
        let told = place.until_told("READY=1");
        let status = format!("STATUS=serving on {}", place.socket().display());
        assert!(told.contains(&status), "{told}");
        let mode = place.socket().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(place.send("").join().unwrap(), Code::Ok);
        daemon.signal(signal);
        place.until_told("STOPPING=1");
        assert_eq!(daemon.end(), DONE);
        assert!(place.left().is_empty(), "{:?}", place.left());
    }
}

fn what_has_begun_is_finished_and_nothing_new_begins() {
    let place = Place::new();
    let mut daemon = place.start(Options::default());
    place.until_told("READY=1");
    let held = place.hold("a");
    daemon.signal(Signal::SIGTERM);
    let told = place.until_told("STOPPING=1");
    assert!(told.contains("STATUS=finishing 1 requests"), "{told}");
    assert_eq!(place.send("").join().unwrap(), Code::Unavailable);
    assert!(!place.socket().exists());
    assert_eq!(held.release(), Code::Ok);
    assert_eq!(daemon.end(), DONE);
    // Once, after the last request.
    let log = daemon.rest_of_log();
    assert_eq!(log.matches("put right").count(), 1, "{log}");
}

fn what_does_not_end_in_time_is_given_up() {
    let place = Place::new();
    let mut daemon = place.start(Options {
        drain_seconds: 0,
        ..Options::default()
    });
    place.until_told("READY=1");
    let held = place.hold("a");
    daemon.signal(Signal::SIGTERM);
    daemon.until_logged("requests did not end in time");
    assert_eq!(daemon.end(), DONE);
    assert_ne!(held.release(), Code::Ok);
}

fn a_second_signal_ends_it_at_once() {
    let place = Place::new();
    let mut daemon = place.start(Options::default());
    place.until_told("READY=1");
    let held = place.hold("a");
    daemon.signal(Signal::SIGTERM);
    place.until_told("STOPPING=1");
    daemon.signal(Signal::SIGTERM);
    daemon.until_logged("ended by a second signal");
    assert_eq!(daemon.end(), DONE);
    assert_ne!(held.release(), Code::Ok);
}

fn a_client_that_hangs_without_a_request_does_not_hold_the_end() {
    let place = Place::new();
    let mut daemon = place.start(Options::default());
    place.until_told("READY=1");
    // It reads nothing more and closes nothing.
    let mut hanging = place.greet();
    hanging.read_exact(&mut [0; 9]).unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), DONE);
    let log = daemon.rest_of_log();
    assert!(!log.contains("did not end in time"), "{log}");
}

fn a_second_daemon_is_refused_and_the_successor_of_a_killed_one_is_not() {
    let place = Place::new();
    let mut first = place.start(Options::default());
    place.until_told("READY=1");
    let mut second = place.start(Options::default());
    let line = second.until_logged("failed");
    let pid = format!("process {}", first.child.pid());
    assert!(line.contains(&pid), "{line}");
    assert_eq!(second.end(), ExitStatus::Exited(1));
    assert_eq!(place.send("").join().unwrap(), Code::Ok);

    first.signal(Signal::SIGKILL);
    first.end();
    let mut third = place.start(Options::default());
    place.until_told("READY=1");
    assert_eq!(place.send("").join().unwrap(), Code::Ok);
    third.signal(Signal::SIGTERM);
    assert_eq!(third.end(), DONE);
    assert!(place.left().is_empty(), "{:?}", place.left());
}

fn a_socket_of_the_service_manager_is_served_and_stays() {
    let place = Place::new();
    let socket = UnixListener::bind(place.socket()).unwrap();
    // Connected before there is a daemon: it is served when there is one.
    let early = UnixStream::connect(place.socket()).unwrap();
    let mut daemon = place.start_activated(socket);
    place.until_told("READY=1");
    assert_eq!(place.send("").join().unwrap(), Code::Ok);
    drop(early);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), DONE);
    assert_eq!(place.left(), ["d.sock"]);
}

fn configuration_is_read_again_on_a_signal() {
    let place = Place::new();
    let mut daemon = place.start(Options::default());
    place.until_told("READY=1");
    daemon.signal(Signal::SIGHUP);
    let told = place.until_told("RELOADING=1");
    assert!(told.contains("MONOTONIC_USEC="), "{told}");
    place.until_told("READY=1");
    daemon.until_logged("the configuration stays as it was");

    std::fs::write(place.path("reloaded"), "").unwrap();
    daemon.signal(Signal::SIGHUP);
    place.until_told("READY=1");
    daemon.until_logged("the configuration was read again");
    assert_eq!(place.send("").join().unwrap(), Code::Ok);
}

fn a_reload_that_lasts_keeps_nobody_waiting() {
    let place = Place::new();
    let mut daemon = place.start(Options::default());
    place.until_told("READY=1");
    // Reading it lasts until somebody has written to it.
    let fifo = place.path("reloaded");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let end_reload = || drop(File::options().write(true).open(&fifo).unwrap());
    daemon.signal(Signal::SIGHUP);
    place.until_told("RELOADING=1");
    assert_eq!(place.send("").join().unwrap(), Code::Ok);
    daemon.signal(Signal::SIGHUP);
    daemon.until_logged("is read once more after this");
    end_reload();
    daemon.until_logged("the configuration was read again");
    place.until_told("RELOADING=1");
    // Nobody ends the second one: the end does not wait for it either.
    daemon.signal(Signal::SIGTERM);
    place.until_told("STOPPING=1");
    assert_eq!(daemon.end(), DONE);
}

fn the_watchdog_hears_from_it_until_it_ends() {
    let place = Place::new();
    let daemon = place.start(Options {
        watchdog_usec: Some(20_000),
        ..Options::default()
    });
    place.until_told("READY=1");
    for _ in 0..3 {
        place.until_told("WATCHDOG=1");
    }
    // A stopped process is what a hanging one looks like from outside.
    daemon.signal(Signal::SIGSTOP);
    daemon.signal(Signal::SIGCONT);
    place.until_told("WATCHDOG=1");
}

fn requests_beyond_the_bound_wait_for_a_place() {
    let place = Place::new();
    let mut daemon = place.start(Options {
        requests_max: 2,
        ..Options::default()
    });
    place.until_told("READY=1");
    let (first, second) = (place.hold("a"), place.hold("b"));
    let (fifo, third) = place.send_held("c");
    // Asked, not answered, and not begun.
    place.until_metrics_say("requests_running 3");
    let write_end = File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&fifo);
    let errno = write_end.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::ENXIO), "nobody reads it yet");
    assert_eq!(first.release(), Code::Ok);
    drop(File::options().write(true).open(&fifo).unwrap());
    assert_eq!(third.join().unwrap(), Code::Ok);
    assert_eq!(second.release(), Code::Ok);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), DONE);
}

fn a_request_does_not_wait_for_a_place_for_ever() {
    let place = Place::new();
    let mut daemon = place.start(Options {
        requests_max: 1,
        wait_seconds: 1,
        ..Options::default()
    });
    place.until_told("READY=1");
    let hung = place.hold("a");
    assert_eq!(place.send("").join().unwrap(), Code::Unavailable);
    assert_eq!(hung.release(), Code::Ok);
    assert_eq!(place.send("").join().unwrap(), Code::Ok);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), DONE);
}

fn requests_that_are_never_whole_hold_no_place() {
    let place = Place::new();
    let mut daemon = place.start(Options {
        requests_max: 2,
        drain_seconds: 0,
        ..Options::default()
    });
    place.until_told("READY=1");
    let half_open = place.open_halves(4);
    place.until_metrics_say("requests_running 4");
    assert_eq!(place.send("").join().unwrap(), Code::Ok);
    // It did not wait until they were given up.
    let page = place.metrics();
    assert!(page.contains("requests_running 4"), "{page}");
    drop(half_open);
    place.until_metrics_say("requests_running 0");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), DONE);
}

fn connections_beyond_the_bound_are_refused_until_others_go() {
    let place = Place::new();
    let mut daemon = place.start(Options {
        connections_max: 2,
        ..Options::default()
    });
    place.until_told("READY=1");
    let open = [(); 2].map(|()| {
        let mut connection = place.greet();
        connection.read_exact(&mut [0; 9]).unwrap();
        connection
    });
    // It was not served and is told why: the daemon's own greeting, GOAWAY, and the end.
    let mut refused = UnixStream::connect(place.socket()).unwrap();
    let mut told = Vec::new();
    refused.read_to_end(&mut told).unwrap();
    assert!(told.ends_with(b"too many connections are open"), "{told:?}");
    assert_ne!(place.send("").join().unwrap(), Code::Ok);
    daemon.until_logged("connections are refused");
    drop(open);
    let begun = Instant::now();
    while place.send("").join().unwrap() != Code::Ok {
        assert!(begun.elapsed() < PATIENCE, "a place is given back");
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), DONE);
}

fn connections_on_which_nobody_asks_give_their_places_back() {
    let place = Place::new();
    let mut daemon = place.start(Options {
        connections_max: 3,
        connection_seconds: 1,
        ..Options::default()
    });
    place.until_told("READY=1");
    let running = place.hold("a");
    // One never speaks; the other greets and never answers.
    let mut silent = UnixStream::connect(place.socket()).unwrap();
    let mut greeted = place.greet();
    for forgotten in [&mut silent, &mut greeted] {
        forgotten.set_read_timeout(Some(PATIENCE)).unwrap();
        forgotten.read_to_end(&mut Vec::new()).unwrap();
    }
    let others = [(); 2].map(|()| place.send(""));
    assert_eq!(others.map(|other| other.join().unwrap()), [Code::Ok; 2]);
    assert_eq!(running.release(), Code::Ok, "its client waits");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.end(), DONE);
}

fn metrics_count_what_was_asked_and_unknown_names_are_one() {
    let place = Place::new();
    let daemon = place.start(Options::default());
    place.until_told("READY=1");
    assert_eq!(place.send("").join().unwrap(), Code::Ok);
    assert_eq!(place.send("/not/there").join().unwrap(), Code::NotFound);
    let page = place.metrics();
    for line in [
        "HTTP/1.1 200 OK",
        "content-type: text/plain; version=0.0.4",
        "requests_total{method=\"Publish\",code=\"OK\"} 1",
        "requests_total{method=\"Publish\",code=\"NotFound\"} 1",
        "request_seconds_count{method=\"Publish\"} 2",
        "requests_running 0",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(place.http("GET /other").starts_with("HTTP/1.1 404"));
    assert!(place.http("POST /metrics").starts_with("HTTP/1.1 405"));
    drop(daemon);
}
