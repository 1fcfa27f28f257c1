//! The operator's command; all of it is in `runv::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    runv::cli::main()
}
