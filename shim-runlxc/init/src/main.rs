//! Entry point of the stub that becomes the program of a container, or stays as its parent.
//!
//! Reads the command line and nothing else; what to do comes over the sockets it names.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use launch::image_init;
use launch::init::End;

const USAGE: &str = "usage: runlxc-init init CONTROL_FD START_FD [AGENT_FD] | exec CONTROL_FD | --version; \
                     in a container: application | busybox-job | component NAME | end | halt | job | last | listening | power-off | \
                     stop | upstart-end";

/// As runc's init: no program of the container ends with it by chance.
const EXIT_FAILED: u8 = 255;

fn main() -> ExitCode {
    // What an image's systemd takes for its own; the arguments are about turning off a machine.
    if is_named(image_init::SHUTDOWN) && std::process::id() == 1 {
        let status = image_init::run_shutdown();
        return ExitCode::from(u8::try_from(status).unwrap_or(EXIT_FAILED));
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(end) = image_init::cover(&arguments) {
        return exit(end);
    }
    let words: Vec<_> = arguments.iter().map(|argument| argument.to_str()).collect();
    let end = match words.get(1..).unwrap_or_default() {
        [Some("--version")] => return say_version(),
        [Some("init"), Some(control), Some(start), agent @ ..] if agent.len() < 2 => {
            let agent = agent.first().map(|word| word.unwrap_or_default().parse());
            match (control.parse(), start.parse(), agent.transpose()) {
                (Ok(control), Ok(start), Ok(agent)) => launch::init::run(control, start, agent),
                _ => return refuse(),
            }
        }
        [Some("exec"), Some(control)] => match control.parse() {
            Ok(control) => launch::exec::run(control),
            Err(_) => return refuse(),
        },
        [Some("application")] => image_init::run_application(),
        [Some("component"), Some(name)] => image_init::component(name),
        [Some("busybox-job")] => image_init::busybox_job(),
        [Some("last")] => image_init::last(),
        [Some("halt")] => image_init::halt(),
        [Some("job")] => image_init::job(),
        [Some("listening")] => image_init::listening(),
        [Some("power-off")] => image_init::power_off(),
        [Some("stop")] => image_init::stop(),
        [Some("end")] => image_init::end(),
        [Some("upstart-end")] => image_init::upstart_end(),
        _ => return refuse(),
    };
    exit(end)
}

fn exit(end: launch::Result<End>) -> ExitCode {
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
