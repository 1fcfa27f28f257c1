//! Entry point of the stub that becomes the program of a container, or stays as its parent.
//!
//! Reads the command line and nothing else; what to do comes over the sockets it names.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use launch::init::End;

const USAGE: &str = "usage: runlxc-init init CONTROL_FD START_FD | exec CONTROL_FD | application | halt | --version";

/// As runc's init: no program of the container ends with it by chance.
const EXIT_FAILED: u8 = 255;

fn main() -> ExitCode {
    // What an image's systemd takes for its own; the arguments are about turning off a machine.
    if is_named(launch::systemd::SHUTDOWN) && std::process::id() == 1 {
        let status = launch::systemd::run_shutdown();
        return ExitCode::from(u8::try_from(status).unwrap_or(EXIT_FAILED));
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(|argument| argument.to_str()).collect();
    let end = match words.as_slice() {
        [Some("--version")] => return say_version(),
        [Some("init"), Some(control), Some(start)] => match (control.parse(), start.parse()) {
            (Ok(control), Ok(start)) => launch::init::run(control, start),
            _ => return refuse(),
        },
        [Some("exec"), Some(control)] => match control.parse() {
            Ok(control) => launch::exec::run(control),
            Err(_) => return refuse(),
        },
        [Some("application")] => launch::systemd::run_application(),
        [Some("halt")] => launch::systemd::halt(),
        _ => return refuse(),
    };
    match end {
        Ok(End::Abandoned | End::Forked) => ExitCode::SUCCESS,
        Ok(End::Failed) => ExitCode::from(EXIT_FAILED),
        Ok(End::Program(status)) => {
            ExitCode::from(u8::try_from(status.code()).unwrap_or(EXIT_FAILED))
        }
        // Pid 1 cannot end by a signal, so it ends with what a shell makes of one.
        Ok(End::Signal(number)) => {
            ExitCode::from(u8::try_from(128 + number).unwrap_or(EXIT_FAILED))
        }
        Err(error) => {
            complain(&error.failure());
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn is_named(name: &str) -> bool {
    let own = std::env::args_os().next().unwrap_or_default();
    Path::new(&own).file_name().is_some_and(|last| last == name)
}

fn say_version() -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    let mut stdout = std::io::stdout();
    // The host side compares it with its own when the two do not understand each other.
    let said = match option_env!("POUCH_REVISION") {
        Some(revision) => writeln!(stdout, "runlxc-init {version} ({revision})"),
        None => writeln!(stdout, "runlxc-init {version}"),
    };
    if said.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn refuse() -> ExitCode {
    complain(&USAGE);
    ExitCode::from(2)
}

/// The last resort: nobody listens on the socket. A closed stream cannot be helped.
fn complain(what: &dyn std::fmt::Display) {
    let _unheard = writeln!(std::io::stderr(), "runlxc-init: {what}");
}
