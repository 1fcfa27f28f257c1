//! containerd-shim-runv-v2: shim-core's `main` with our runtime.

use std::process::ExitCode;

use runv::runtime::RunV;

fn main() -> ExitCode {
    shim_core::run(RunV::default(), std::env::args_os())
}
