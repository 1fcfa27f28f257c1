//! Drives a real shim process with a fake runtime as containerd does: by its verbs, a ttrpc client
//! and an events server. This binary is also that shim, when called by a shim's name.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is tests, which clippy cannot see without the standard harness"
)]

mod containerd;
mod fake;
mod hangs;
mod lifecycle;
mod sandbox;
mod verbs;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// A test: its name and what it does.
type Test = (&'static str, fn());

/// Tests by the names of their functions.
macro_rules! tests {
    ($($test:ident,)*) => { &[$((stringify!($test), || crate::block_on($test())),)*] };
}
use tests;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments
        .first()
        .map(Path::new)
        .and_then(Path::file_name)
        .unwrap_or_default();
    if name.to_string_lossy().starts_with("containerd-shim-") {
        return shim_core::run(fake::FakeRuntime, arguments);
    }
    // Shims are left by `start` to whoever comes next: us.
    sys::set_subreaper().expect("orphans come to us");
    let wanted: Vec<String> = arguments
        .into_iter()
        .skip(1)
        .filter_map(|a| a.into_string().ok())
        .collect();
    let tests = [lifecycle::TESTS, hangs::TESTS, sandbox::TESTS, verbs::TESTS].concat();
    run(&tests, &wanted)
}

/// As the standard harness: names that match a word of the command line, or all.
fn run(tests: &[Test], wanted: &[String]) -> ExitCode {
    let words: Vec<_> = wanted
        .iter()
        .filter(|word| !word.starts_with('-'))
        .collect();
    let list = wanted.iter().any(|word| word == "--list");
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        if list {
            say(&format!("{name}: test"));
            continue;
        }
        let outcome = std::panic::catch_unwind(test);
        let (count, word) = match outcome {
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

/// Runs a test on a runtime of its own.
fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime starts").block_on(test);
}
