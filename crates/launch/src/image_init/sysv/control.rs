//! What sysvinit runs of us, and how it is asked for something: by its fifo (init(8), telinit).

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;
use std::{ffi::CString, ffi::OsString};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::execv;
use sys::process::kill_number;
use sys::{ExitStatus, Pid};

use crate::error::{Error, Result, host};
use crate::image_init::application::{self, END_AT_ONCE, refuse_elsewhere, status_path};
use crate::image_init::keeper::{self, Word};
use crate::image_init::{OWN, shutdown};
use crate::init::End;

use super::{INITCTL, original};

/// What a program may take to end: systemd's own limit for a unit, and a little.
pub(in crate::image_init) const STOP_LIMIT: Duration = Duration::from_secs(95);

/// What the kernel may take to end it, and its parent to say so.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// struct `init_request` of initreq.h: magic number, command, runlevel, seconds between TERM and
/// KILL, as native integers; then nothing of use here.
const REQUEST_BYTES: usize = 384;
const MAGIC: i32 = 0x0309_1969;
const CHANGE_LEVEL: i32 = 1;
const SECONDS_TO_KILL: i32 = 5;

/// Levels to ask for.
const POWER_OFF: char = '0';
const EXECUTE_ANEW: char = 'U';

/// The program's parent listens there as long as it lives.
fn parent_socket() -> String {
    format!("{OWN}/parent")
}

/// There once the container is about to end.
pub(in crate::image_init) fn stopping() -> String {
    format!("{OWN}/stopping")
}

/// There once it has ended but for its last program.
fn ended() -> String {
    format!("{OWN}/ended")
}

fn is_there(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn request(level: char) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    let words = [MAGIC, CHANGE_LEVEL, level as i32, SECONDS_TO_KILL];
    for (place, word) in bytes.chunks_exact_mut(size_of::<i32>()).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Waits until init listens, which it does when it waits for nothing else.
fn ask(level: char) -> Result<()> {
    let mut fifo = OpenOptions::new()
        .write(true)
        .open(INITCTL)
        .map_err(host(|| format!("open {INITCTL}")))?;
    fifo.write_all(&request(level))
        .map_err(host(|| format!("ask init for level {level} at {INITCTL}")))
}

/// Says that init listens to signals: it ignored all until it read its inittab.
///
/// # Errors
/// What keeps it from saying so.
pub fn listening() -> Result<End> {
    refuse_elsewhere()?;
    keeper::say(Word::Listening, &[])?;
    Ok(End::Forked)
}

/// Asks for the end of all.
///
/// # Errors
/// What keeps it from asking.
pub fn halt() -> Result<End> {
    refuse_elsewhere()?;
    ask(POWER_OFF)?;
    Ok(End::Forked)
}

/// Runs the program of the container. When it is run again, which is what init does as soon as it has
/// ended, it asks for the end of all, and stays so that it is not run once more.
///
/// # Errors
/// As [`application::run`], and what keeps it from asking.
pub fn job() -> Result<End> {
    job_ended_by(|| ask(POWER_OFF))
}

/// The same with another way to ask.
pub(in crate::image_init) fn job_ended_by(ask: impl FnOnce() -> Result<()>) -> Result<End> {
    refuse_elsewhere()?;
    if !is_there(&status_path()) {
        let path = parent_socket();
        // Of a parent that was killed before it had the program.
        let _none = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(host(|| format!("bind {path}")))?;
        // Only now: `stop` says so first and connects then, so one of the two sees the other.
        if !is_there(&stopping()) {
            let end = application::run();
            drop(listener);
            return end;
        }
    }
    if !is_there(&stopping()) {
        ask()?;
    }
    let only: SigSet = [Signal::SIGTERM].into_iter().collect();
    let step = || "wait for the end".to_owned();
    only.thread_block().map_err(host(step))?;
    only.wait().map_err(host(step))?;
    Ok(End::Forked)
}

/// Ends the program, and waits until it has; then no other is started.
///
/// # Errors
/// What keeps it from telling the program.
pub fn stop() -> Result<End> {
    refuse_elsewhere()?;
    let path = stopping();
    fs::write(&path, "").map_err(host(|| format!("write {path}")))?;
    // Nobody listens: it has ended, or was never there.
    let Ok(parent) = UnixStream::connect(parent_socket()) else {
        return Ok(End::Forked);
    };
    let step = || "stop the program".to_owned();
    let pid = getsockopt(&parent, PeerCredentials).map_err(host(step))?;
    let pid = Pid::from_raw(pid.pid());
    // ESRCH: it has just ended.
    let _sent = kill_number(pid, Signal::SIGTERM as i32);
    let mut fds = [PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(STOP_LIMIT).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, limit).map_err(host(step))? == 0 {
        // Its group, so that it is gone before the services are.
        let _sent = kill_number(pid, END_AT_ONCE.from);
        let limit = PollTimeout::try_from(KILL_LIMIT).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, limit).map_err(host(step))? == 0 {
            let _sent = kill_number(pid, Signal::SIGKILL as i32);
        }
    }
    Ok(End::Forked)
}

/// Asks pid 1 to execute itself anew, that is, its last program.
///
/// # Errors
/// What keeps it from asking.
pub fn end() -> Result<End> {
    refuse_elsewhere()?;
    note_end()?;
    ask(EXECUTE_ANEW)?;
    Ok(End::Forked)
}

/// Has what pid 1 executes next be its last program.
pub(in crate::image_init) fn note_end() -> Result<()> {
    let path = ended();
    fs::write(&path, "").map_err(host(|| format!("write {path}")))
}

/// Whether a program that was called so covers the image's init.
fn covers(name: &OsString) -> bool {
    let path = Path::new(name);
    let is_name = path
        .file_name()
        .is_some_and(|last| last == "init" || last == "telinit");
    is_name && path != Path::new(OWN).join("init")
}

/// What a program does that was called as the image's init is: it goes on as that, or it is the last
/// program of pid 1. None: it was not called so.
#[must_use]
pub fn cover(arguments: &[OsString]) -> Option<Result<End>> {
    covers(arguments.first()?).then(|| {
        if std::process::id() == 1 && is_there(&ended()) {
            // Whoever writes upstart's state into it would wait for a reader.
            drop(state_fd(arguments).map(sys::take_inherited_fd));
            return Ok(End::Program(ExitStatus::Exited(shutdown::run())));
        }
        Err(go_on(arguments))
    })
}

/// Where an upstart that executes itself anew finds its state.
fn state_fd(arguments: &[OsString]) -> Option<RawFd> {
    let at = arguments.iter().position(|word| word == "--state-fd")?;
    let number: RawFd = arguments.get(at + 1)?.to_str()?.parse().ok()?;
    (number > 2).then_some(number)
}

/// Executes the image's init, and gives why not.
fn go_on(arguments: &[OsString]) -> Error {
    let path = original();
    let cannot = |errno: nix::Error| host(|| format!("execute {path}"))(errno);
    let c_string = |text: &[u8]| CString::new(text).map_err(|_nul| nix::Error::EINVAL);
    let all = arguments.iter().map(|text| c_string(text.as_bytes()));
    let executed = all
        .collect::<nix::Result<Vec<_>>>()
        .and_then(|all| execv(&c_string(path.as_bytes())?, &all));
    match executed {
        Ok(never) => match never {},
        Err(errno) => cannot(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_initreq_h_says() {
        let bytes = request('0');
        let word = |index: usize| {
            let bytes = bytes[index * 4..][..4].try_into().unwrap();
            i32::from_ne_bytes(bytes)
        };
        assert_eq!([0, 1, 2, 3].map(word), [0x0309_1969, 1, 48, 5]);
        assert!(bytes[16..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn the_state_of_an_upstart_is_found_in_its_words() {
        let words = |text: &str| -> Vec<_> { text.split(' ').map(OsString::from).collect() };
        assert_eq!(state_fd(&words("init --state-fd 8 --restart")), Some(8));
        for none in [
            "init --restart",
            "init --state-fd",
            "init --state-fd x",
            "init --state-fd 1",
        ] {
            assert_eq!(state_fd(&words(none)), None, "{none}");
        }
    }

    #[test]
    fn only_the_names_of_an_image_cover_its_init() {
        for (name, expected) in [
            ("/sbin/init", true),
            ("init", true),
            ("telinit", true),
            ("/run/runlxc/init", false),
            ("runlxc-init", false),
            ("/proc/self/exe", false),
            ("", false),
        ] {
            assert_eq!(covers(&OsString::from(name)), expected, "{name}");
        }
    }
}
