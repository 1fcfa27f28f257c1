//! The command; all of it is in `snapshotter_remote::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapshotter_remote::cli::main()
}
