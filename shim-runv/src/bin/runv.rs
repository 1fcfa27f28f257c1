//! The operator's command; all of it is in `runv::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let holder = runv::template::main_of(std::env::args());
    holder.unwrap_or_else(runv::cli::main)
}
