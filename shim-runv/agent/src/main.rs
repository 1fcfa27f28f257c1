//! Pid 1 of a virtual machine, and in other processes of it the stub that becomes a container's program.
//!
//! ```text
//!   boot ──> port ──> serve ──> container ──spawns──> itself as stub ──> launch ──> the program
//!                       └─ reaper: who has ended
//! ```
//! It ends by turning the machine off: when it is told, and when the port dies, for then nobody is
//! there who could ask for anything again.

mod boot;
mod container;
mod containers;
mod disks;
mod error;
mod oom;
mod pause;
mod port;
mod process;
mod rootfs;
mod serve;
mod stub;

use std::process::ExitCode;

/// As runlxc-init has it: no program of a container ends with it by chance.
const EXIT_FAILED: u8 = 255;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [stub::INIT, control, start] => stub::become_init(control, start),
        [stub::EXEC, control] => stub::become_exec(control),
        [pause::PAUSE] => pause::for_ever(),
        // The kernel passes on words of its command line that it does not know.
        _ if std::process::id() == 1 => run(),
        _ => {
            say("usage: runv-agent is started by the kernel of a virtual machine, as its /init");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn run() -> ExitCode {
    if let Err(error) = boot::up().and_then(|()| serve::until_the_end()) {
        say(&format!("runv-agent: {}", error.chain()));
    }
    boot::off()
}

/// Writes to the console, which the shim shows when the machine does not come up.
#[expect(clippy::print_stderr, reason = "the console is all there is")]
fn say(text: &str) {
    eprintln!("{text}");
}
