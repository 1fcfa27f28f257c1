//! A test that cannot run here says so, and the summary of `make test` repeats it.
//!
//! It must not hide a failure: only what the machine lacks may be skipped, by its name.

use std::{fs::OpenOptions, io::Write};

/// Environment variable that names the file in which skips are collected.
pub const SKIPS_FILE: &str = "POUCH_SKIPS";

/// Prints `skipped: NAME: REASON` and notes it for the summary.
#[expect(
    clippy::print_stderr,
    reason = "the reader of a test run is told why something did not run"
)]
pub fn skip(name: &str, reason: &str) {
    let line = format!("skipped: {name}: {reason}\n");
    eprint!("{line}");
    let Some(path) = std::env::var_os(SKIPS_FILE) else {
        return;
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("cannot note the skip in {}: {error}", path.display());
    }
}
