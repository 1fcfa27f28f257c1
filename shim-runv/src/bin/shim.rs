//! containerd-shim-runv-v2: shim-core's `main` with our runtime, or the holder of a template.

use std::process::ExitCode;

use runv::runtime::RunV;

fn main() -> ExitCode {
    let holder = runv::template::main_of(std::env::args());
    holder.unwrap_or_else(|| shim_core::run(RunV::default(), std::env::args_os()))
}
