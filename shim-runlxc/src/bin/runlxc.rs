//! The OCI command; all of it is in `runlxc::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    runlxc::cli::main()
}
