//! containerd-shim-runlxc-v2: shim-core's `main` with our runtime.

use std::process::ExitCode;

use runlxc::runtime::RunLxc;

fn main() -> ExitCode {
    shim_core::run(RunLxc::default(), std::env::args_os())
}
