//! The command; all of it is in `snapshotter_quota::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapshotter_quota::cli::main()
}
