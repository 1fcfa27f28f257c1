//! Drives a real daemon process by its socket, its signals and the service manager's protocol.
//! This binary is also that daemon, when its first argument says so.
#![expect(
    clippy::unwrap_used,
    reason = "all of this is tests, which clippy cannot see without the standard harness"
)]

mod process;
mod serving;
mod stories;

use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == serving::WORD) {
        return serving::run(&arguments[1..]);
    }
    run(stories::TESTS, &arguments)
}

/// As the standard harness: names that match a word of the command line, or all.
fn run(tests: &[(&str, fn())], arguments: &[String]) -> ExitCode {
    let words: Vec<_> = arguments
        .iter()
        .filter(|word| !word.starts_with('-'))
        .collect();
    let list = arguments.iter().any(|word| word == "--list");
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        if list {
            say(&format!("{name}: test"));
            continue;
        }
        let (count, word) = match std::panic::catch_unwind(test) {
            Ok(()) => (&mut passed, "ok"),
            Err(_) => (&mut failed, "FAILED"),
        };
        *count += 1;
        say(&format!("test {name} ... {word}"));
    }
    let (word, code) = match failed {
        0 => ("ok", ExitCode::SUCCESS),
        _ => ("FAILED", ExitCode::FAILURE),
    };
    if !list {
        // Counted by the summary of `make test`.
        say(&format!(
            "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored"
        ));
    }
    code
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("somebody reads the results");
}
